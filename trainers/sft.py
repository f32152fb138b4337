"""Supervised fine-tuning of either role on TRL's `SFTTrainer`, with a weight a token (arXiv 2506.06006).

A row is a prompt and the span that the role predicts: the action's words (IDM) or the target's image tokens (FDM). The
loss is taken under the role's own distribution, the one that sampler and scorer use, not under the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTTrainer

from rl.data.importance import Importance, feature_distances
from rl.errors import RewindError
from rl.files import whole_folder
from rl.images import Picture
from rl.models.distribution import TokenDistribution
from rl.models.dynamics import token_ids
from rl.triplets import Candidate, Triplet
from rl.unified import UnifiedVLM
from trainers.arguments import RoleConfig
from trainers.checkpoints import WholeCheckpoints
from trainers.losses import weighted_nll, z_loss
from trainers.scoring import IGNORED, score_under
from trainers.sharding import ShardingCheck, gathered_adapter, keep_head_whole, on_main

Role = Literal["fdm", "idm"]
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""All linear layers of the decoder stack; the head stays as it is, since both roles share it."""


def role_rows(
    vlm: UnifiedVLM,
    role: Role,
    triplets: Sequence[Triplet],
    importance: Importance | None = None,
    candidates: Sequence[Candidate] | None = None,
    row_weights: Sequence[float] | None = None,
) -> Dataset:
    """Triplets as rows of `input_ids`, `labels` (-100 in the prompt) and, where asked for, `weights` (0 there).

    `candidates`, one a triplet, are learned in place of the targets, by their own tokens. `weights` come from
    `importance`, token by token, or from `row_weights`, a number a triplet.

    Raises:
        RewindError: no triplet, one without a target, importance weights for the words of an IDM.
    """
    if not triplets:
        raise RewindError("there is no triplet to train on")
    missing = [number for number, triplet in enumerate(triplets) if triplet.target is None]
    if missing and candidates is None:
        raise RewindError(f"triplet {missing[0]} has no target picture, which training needs: leave it out")
    if role == "idm" and importance is not None:
        raise RewindError("token-importance weights belong to image tokens; an IDM predicts words")
    sources = [triplet.source for triplet in triplets]
    targets: Sequence[Picture | Candidate] = candidates or [
        triplet.target for triplet in triplets if triplet.target is not None
    ]
    source_ids, target_ids = token_ids(vlm, sources), token_ids(vlm, targets)
    weights = None
    if importance is not None:
        pictures = [target.image if isinstance(target, Candidate) else target for target in targets]
        weights = importance.weights(feature_distances(vlm, sources, pictures)).tolist()
    if row_weights is not None:
        if importance is not None:
            raise RewindError("give either importance weights or a weight a row")
        weights = [[weight] * len(ids) for weight, ids in zip(row_weights, target_ids, strict=True)]
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": []} | ({"weights": []} if weights else {})
    for number, triplet in enumerate(triplets):
        if role == "fdm":
            prompt, span = vlm.fdm_prompt(source_ids[number], triplet.action), target_ids[number]
        else:
            prompt = vlm.idm_prompt(source_ids[number], target_ids[number])
            span = vlm.action_ids(triplet.action)
        rows["input_ids"].append(prompt + span)
        rows["labels"].append([IGNORED] * len(prompt) + span)
        if weights is not None:
            rows["weights"].append([0.0] * len(prompt) + weights[number])
    return Dataset.from_dict(rows)


class SpanCollator:
    """Pads rows on the right: `input_ids` and `labels` int64 [B, T], `weights` float32 [B, T]."""

    def __init__(self, pad: int) -> None:
        self.fill = {"input_ids": (pad, torch.long), "labels": (IGNORED, torch.long), "weights": (0.0, torch.float32)}

    def __call__(self, rows: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows], dtype=dtype)
            for key, (value, dtype) in self.fill.items()
            if key in rows[0]
        }


def add_adapter(vlm: UnifiedVLM, config: LoraConfig, name: str = "default") -> None:
    """Put a fresh LoRA adapter on a backbone and make it the trainable one; its config names the base.

    Raises:
        RewindError: the head among the targets, which sampling reads as a plain matrix.
    """
    targets = config.target_modules
    if config.modules_to_save or (isinstance(targets, list | set) and "lm_head" in targets):
        raise RewindError("the head stays frozen, since both roles share it: leave lm_head and modules_to_save out")
    model: Any = vlm.model
    if hasattr(model, "peft_config"):
        model.add_adapter(name, config)
        model.set_adapter(name)
    else:
        model = vlm.model = get_peft_model(model, config, adapter_name=name)
    model.peft_config[name].base_model_name_or_path = vlm.name  # peft puts the in-memory model's own name there


def save_adapter(vlm: UnifiedVLM, run: Path, name: str = "default") -> Path:
    """Write an adapter to `run/adapter` in safetensors, whatever its name on the backbone; returns the folder.

    Every process must call it; the main one writes.
    """
    folder = run / "adapter"
    with gathered_adapter(vlm.model):
        on_main(lambda: _write_adapter(vlm, folder, name))
    return folder


def _write_adapter(vlm: UnifiedVLM, folder: Path, name: str) -> None:
    model: Any = vlm.model
    with whole_folder(folder, last="adapter_config.json") as beside:  # which says that there is an adapter
        model.save_pretrained(str(beside), selected_adapters=[name], save_embedding_layers=False)
        inner = beside / name
        if inner.is_dir():  # peft puts every adapter but `default` into a folder of its own
            for file in inner.iterdir():
                file.replace(beside / file.name)
            inner.rmdir()


class RoleSFTTrainer(WholeCheckpoints, SFTTrainer):
    """TRL's `SFTTrainer` with the loss of a role.

    Seams of TRL 1.16 / transformers 5.23 that it touches: `compute_loss`; `_get_num_items_in_batch`, which is called
    once an optimizer step to count its tokens and here sums their weights; `_metrics`, whose lists TRL averages and
    logs.

    Args:
        vlm: the backbone, whose `model` is trained.
        role: which distribution the span is scored under.
        args: TRL's `SFTConfig` with our `z_loss`, a coefficient of 0 or more; dataset preparation is switched off,
            since rows are tokens already.
        train_dataset: rows of `role_rows`.
        use_weights: whether the column `weights` counts; a column that is there but unused is an error.
        collator: makes batches of rows; `SpanCollator` if not given.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        role: Role,
        args: RoleConfig,
        train_dataset: Dataset,
        *,
        use_weights: bool = False,
        callbacks: list[TrainerCallback] | None = None,
        collator: Callable[[list[dict[str, list[Any]]]], dict[str, Tensor]] | None = None,
    ) -> None:
        if use_weights != ("weights" in train_dataset.column_names):
            has = "holds" if "weights" in train_dataset.column_names else "lacks"
            raise RewindError(
                f"the data {has} a column of token weights and use_weights is {use_weights}: they must agree"
            )
        self.vlm = vlm
        self.noted = ["z_loss"] if args.z_loss > 0 else []
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        super().__init__(
            model=vlm.model,
            args=args,
            data_collator=collator or SpanCollator(vlm.layout.pad),
            train_dataset=train_dataset,
            processing_class=vlm.tokenizer,
            callbacks=callbacks,
        )
        self.answer_as(role)
        keep_head_whole(self, vlm)
        self.add_callback(ShardingCheck(self))
        self.loss_is_scaled_for_ga = True  # our divisor already covers all accumulation steps

    def answer_as(self, role: Role) -> None:
        """Let the model answer under the distribution of a role."""
        self.role, layout = role, self.vlm.layout
        ids = layout.image_ids_V if role == "fdm" else layout.text_ids_V
        score_under(self.vlm, TokenDistribution(ids), with_log_z=self.args.z_loss > 0)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        for name in self.noted:
            self._metrics["train"][name].append(0.0)
        return self._total(batch_samples, device)

    def _total(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The sum of all weights of an optimizer step, on all processes."""
        total = torch.stack([_weights(batch).sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def _note(self, name: str, part: Tensor) -> None:
        """Add a micro-batch's part, on every process, to what is logged of this optimizer step."""
        self._metrics["train"][name][-1] += float(self.accelerator.reduce(part, "sum"))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, weights = inputs["labels"], _weights(inputs)[:, 1:]
        with self.accelerator.autocast():
            scores = model(input_ids=inputs["input_ids"], labels=labels, fused_lm_head=True)
        learned = labels[:, 1:] != IGNORED
        # Position t's logits predict token t + 1, so a token's weight goes with the state before it.
        total = weights[learned].sum() if num_items_in_batch is None else num_items_in_batch
        loss = weighted_nll(scores.log_probs[learned], weights[learned], total)
        if self.args.z_loss > 0:
            added = self.args.z_loss * z_loss(scores.log_z[learned], weights[learned], total)
            loss = loss + added
            if num_items_in_batch is not None:
                self._note("z_loss", added.detach())
        if num_items_in_batch is not None:
            loss = loss * self.args.world_size  # gradients are averaged over processes; the divisor is already global
        return (loss, {}) if return_outputs else loss


def _weights(batch: dict[str, Tensor]) -> Tensor:
    """The weights of a batch [B, T]: its column, or 1 for every learned token."""
    return batch["weights"] if "weights" in batch else (batch["labels"] != IGNORED).float()
