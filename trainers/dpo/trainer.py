"""DPO on TRL's `DPOTrainer` (arXiv 2305.18290) with preference pairs built from rewards.

The highest candidate of a group against the lowest, if they are far enough apart. Log-probabilities of policy and
reference are the sampler's own, over image tokens only. An SFT term on the chosen candidate is TRL's own:
`loss_type=["sigmoid", "sft"]` with `loss_weights`.

A pair's prompt is read once for both, with gradients, where it is long (`rl.models.packing`).

Seams of TRL 1.16 that it touches: `_prepare_dataset`, which would tokenise text and here returns rows of token ids as
they are; the collator, of whose columns TRL passes all that it does not know to the model; the model's forward with
`fused_lm_head=True` (`trainers.common.log_probs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from rl.errors import RewindError
from rl.models import packing
from rl.models.distribution import TokenDistribution
from rl.models.inputs import token_ids
from rl.models.roles import IDM_ADAPTER, JUDGE_ADAPTER
from rl.models.unified import UnifiedVLM
from rl.triplets import Scored, Triplet
from trainers.common.checkpoints import WholeCheckpoints
from trainers.common.log_probs import score_under
from trainers.common.refusals import DPO, refuse_ignored
from trainers.common.rows_on_disk import rows_on_disk
from trainers.common.sharding import ShardingCheck, keep_head_whole

REFERENCE = "ref"
"""The adapter in which TRL keeps a copy of the policy's start."""
ROWS_FILE = "pairs.arrow"
"""Where the rows of a round lie."""
NO_PAIR = "there is no preference pair to train on: lower --min_gap or draw more candidates"
SCHEMA = pa.schema({name: pa.list_(pa.int32()) for name in ("prompt_ids", "chosen_ids", "rejected_ids")})


@dataclass(frozen=True)
class Preference:
    """A group's best and worst candidate for one source and action."""

    triplet: Triplet
    chosen: Scored
    rejected: Scored


@dataclass(frozen=True)
class Pairing:
    """Which groups give a preference pair.

    Args:
        num_candidates: N, candidates a source and action.
        min_gap: the totals of chosen and rejected must differ by at least this: near ties are noise.
    """

    num_candidates: int = 8
    min_gap: float = 0.5

    def __post_init__(self) -> None:
        if self.num_candidates < 2:
            raise RewindError(f"a preference pair needs at least 2 candidates, not {self.num_candidates}")
        if self.min_gap < 0:
            raise RewindError(f"min_gap must be 0 or more, not {self.min_gap}")

    def pair(self, triplet: Triplet, group: Iterable[Scored]) -> Preference | None:
        """The pair of a group, or None if too few can be scored or they are too near each other or equal pictures."""
        known = [(scored.total, number, scored) for number, scored in enumerate(group) if scored.total is not None]
        if len(known) < 2:
            return None
        (high, _, chosen), (low, _, rejected) = max(known), min(known)
        if high - low < max(self.min_gap, 1e-6) or (chosen.candidate.ids == rejected.candidate.ids).all():
            return None
        return Preference(triplet, chosen, rejected)

    def pairs(self, groups: Iterable[tuple[Triplet, Iterable[Scored]]]) -> Iterator[Preference]:
        """The pairs of groups, one at a time."""
        for triplet, group in groups:
            if (pair := self.pair(triplet, group)) is not None:
                yield pair


def preference_rows(
    vlm: UnifiedVLM, preferences: Iterable[Preference], file: Path | None = None, none: str = NO_PAIR
) -> Dataset:
    """Pairs as TRL's tokenised columns `prompt_ids`, `chosen_ids`, `rejected_ids`.

    With `file` they lie there, and no more than some are in memory at once (`rows_on_disk`).

    Raises:
        RewindError: no pair, in the words of `none`, or a file that cannot be written.
    """

    def rows(here: list[Preference]) -> dict[str, list[list[int]]]:
        sources = token_ids(vlm, [preference.triplet.source for preference in here])
        return {
            "prompt_ids": [vlm.fdm_prompt(ids, p.triplet.action) for ids, p in zip(sources, here, strict=True)],
            "chosen_ids": [vlm.target_span(p.chosen.candidate.codes) for p in here],
            "rejected_ids": [vlm.target_span(p.rejected.candidate.codes) for p in here],
        }

    found = Dataset.from_dict(rows([*preferences])) if file is None else rows_on_disk(file, SCHEMA, preferences, rows)
    if not len(found):
        raise RewindError(none)
    return found


class PairsBehindPrompts(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's batch, chosen rows before rejected ones; long prompts all end in one column, so that they can be shared."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `completion_mask` int64 [2 B, T]; of long prompts `position_ids` and `own`."""
        if max(len(row["prompt_ids"]) for row in examples) < packing.SHARED_FROM:
            found: dict[str, Any] = super().torch_call(examples)
            return found
        names = ["prompt_ids"] * 2, ["chosen_ids", "rejected_ids"]
        spans = [[torch.tensor(row[name]) for name in both for row in examples] for both in names]

        def padded(values: list[list[torch.Tensor]], fill: int) -> list[torch.Tensor]:
            whole = self.pad_to_multiple_of  # a sum of two multiples is one
            return [pad(v, fill, side, whole) for v, side in zip(values, ("left", "right"), strict=True)]

        ids, seen = padded(spans, self.pad_token_id), padded([[torch.ones_like(s) for s in one] for one in spans], 0)
        mask = torch.cat(seen, 1)
        return {
            "input_ids": torch.cat(ids, 1),
            "attention_mask": mask,
            "completion_mask": torch.cat([torch.zeros_like(seen[0]), seen[1]], 1),
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "own": seen[1].shape[1],
        }


class WorldModelDPOTrainer(WholeCheckpoints, DPOTrainer):
    """DPO of a forward dynamics model.

    Args:
        vlm: the backbone, its policy adapter `default` trainable; the reference is a copy of it as it is now.
        args: `DPOConfig`; nothing is truncated, dropout is off.
        train_dataset: rows of `preference_rows`.
        eval_dataset: held-out rows, made in the same way. `eval_loss` is TRL's: the mean over pairs of what it logs.
    """

    elsewhere = (IDM_ADAPTER, JUDGE_ADAPTER)  # the one that rewards is frozen, and the run names it

    def __init__(
        self,
        vlm: UnifiedVLM,
        args: DPOConfig,
        train_dataset: Dataset,
        *,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        refuse_ignored(args, DPO)
        self.vlm = vlm
        model: Any = vlm.model
        if REFERENCE in model.peft_config:  # of an earlier round; TRL makes a fresh copy of the policy
            model.delete_adapter(REFERENCE)
        given, args.max_length = args.max_length, None
        args.disable_dropout = True
        super().__init__(
            model=model,
            args=args,
            data_collator=PairsBehindPrompts(vlm.layout.pad, pad_to_multiple_of=args.pad_to_multiple_of),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=vlm.tokenizer,
            callbacks=callbacks,
        )
        args.max_length = given  # TRL has read ours
        score_under(vlm, TokenDistribution(vlm.layout.image_ids_V), ["entropy", "mean_logits", "is_top1"])
        keep_head_whole(self, vlm)
        self.add_callback(ShardingCheck(self))

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset
