"""Best-of-N training: draw candidates, score them, keep the best of each group, fine-tune on it (rejection sampling).

The plain alternative to GRPO at the same number of sampled candidates. TRL has no trainer for it, so the second half is
our SFT trainer on the kept candidates' own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from rl.errors import RewindError
from rl.models.inputs import token_ids
from rl.models.unified import UnifiedVLM
from rl.triplets import Scored, Triplet
from trainers.common.rows_on_disk import in_passing, rows_on_disk
from trainers.sft.codes import CodesOnDisk, as_columns, fields_of
from trainers.sft.rows import role_rows, rows_of_codes

KEPT_FILE = "kept.arrow"
"""Where what a round has kept lies."""


@dataclass(frozen=True)
class Keep:
    """Which of a group's candidates are learned from.

    Args:
        num_candidates: N, candidates a source and action.
        min_lead: the best total must lead the group's mean by this much: a group that is all alike teaches nothing.
        min_changed: tokens that must differ from the source: near-copies are left out.
        top: how many different pictures of a group are learned from, of those above its mean.
        reward_temperature: weigh them by exp(total / this), as in reward-weighted regression (arXiv 1910.00177); None
            counts all alike. In a group the weights have the mean 1.
    """

    num_candidates: int = 8
    min_lead: float = 0.0
    min_changed: int = 1
    top: int = 1
    reward_temperature: float | None = None

    def __post_init__(self) -> None:
        if self.num_candidates < 2:
            raise RewindError(f"best-of-N training needs at least 2 candidates, not {self.num_candidates}")
        if self.min_lead < 0 or self.min_changed < 0:
            raise RewindError("min_lead and min_changed must be 0 or more")
        if not 1 <= self.top <= self.num_candidates:
            raise RewindError(f"top must be 1 to {self.num_candidates}, the number of candidates, not {self.top}")
        if self.reward_temperature is not None and not self.reward_temperature > 0:
            raise RewindError(f"reward_temperature must be above 0, not {self.reward_temperature}")

    def best(self, group: Sequence[Scored], source_ids_K: Sequence[int]) -> Scored | None:
        """The best candidate of a group, or None if it leads too little or is too near a copy."""
        scorable = [(s.total, s.candidate.logprob, number) for number, s in enumerate(group) if s.total is not None]
        if not scorable:
            return None
        total, _, number = max(scorable)
        lead = total - float(np.mean([t for t, _, _ in scorable]))
        if lead < max(self.min_lead, 1e-6):
            return None
        return group[number] if self._changes(group[number], source_ids_K) else None

    def chosen(self, group: Sequence[Scored], source_ids_K: Sequence[int]) -> list[tuple[Scored, float]]:
        """The candidates of a group that are learned from, best first, with their weights; none without a `best`."""
        best = self.best(group, source_ids_K)
        if best is None:
            return []
        known = {id(s): s.total for s in group if s.total is not None}
        mean = float(np.mean(list(known.values())))
        able = [s for s in group if known.get(id(s), mean) > mean and self._changes(s, source_ids_K)]
        able.sort(key=lambda s: (known[id(s)], s.candidate.logprob), reverse=True)
        different: dict[bytes, Scored] = {}
        for scored in [best, *able]:
            different.setdefault(scored.candidate.ids.tobytes(), scored)
        found = list(different.values())[: self.top]
        totals = np.array([known[id(s)] for s in found])
        weights = np.ones(len(found))
        if self.reward_temperature is not None:
            weights = np.exp((totals - totals.max()) / self.reward_temperature)
        return list(zip(found, (weights / weights.mean()).tolist(), strict=True))

    def _changes(self, scored: Scored, source_ids_K: Sequence[int]) -> bool:
        changed_K = scored.candidate.backbone.changed(scored.candidate.ids, source_ids_K)
        return int(changed_K.sum()) >= self.min_changed

    def of(self, vlm: UnifiedVLM, groups: Iterable[tuple[Triplet, Sequence[Scored]]]) -> Iterator[Kept]:
        """What is kept of groups, which may come one at a time, from a store of any size."""
        for triplet, group in groups:
            source_ids_K = token_ids(vlm, [triplet.source])[0]
            for scored, weight in self.chosen(group, source_ids_K):
                yield Kept(triplet, scored, weight)


@dataclass(frozen=True)
class Kept:
    """A candidate to learn from, for which source and action, and how much it counts."""

    triplet: Triplet
    scored: Scored
    weight: float


def keep_best(
    vlm: UnifiedVLM, groups: Iterable[tuple[Triplet, Sequence[Scored]]], keep: Keep
) -> tuple[list[Kept], list[float]]:
    """What is kept of groups that fit into memory, and the total of every candidate that could be scored."""
    totals: list[float] = []
    return [*keep.of(vlm, in_passing(groups, totals, needed=False))], totals


def kept_rows(vlm: UnifiedVLM, kept: Iterable[Kept], file: Path | None = None) -> Dataset:
    """Kept candidates as rows for `RoleSFTTrainer`, with a column of weights if they do not all count alike.

    With `file` their codes lie there, and no more than some are in memory at once (`rows_on_disk`).

    Raises:
        RewindError: nothing is kept, or a file that cannot be written.
    """
    if file is None:
        every = [*kept]
        drawn, weights = [one.scored.candidate for one in every], [one.weight for one in every]
        return role_rows(vlm, "fdm", [one.triplet for one in every], candidates=drawn, row_weights=_unequal(weights))

    def columns(here: list[Kept]) -> dict[str, Any]:
        sources = token_ids(vlm, [one.triplet.source for one in here])
        targets = [one.scored.candidate.codes for one in here]
        told = {"action": [one.triplet.action for one in here], "weight": [one.weight for one in here]}
        return told | as_columns("source", sources) | as_columns("target", targets)

    schema = pa.schema([*fields_of(vlm, "source", "target"), ("action", pa.string()), ("weight", pa.float64())])
    rows = rows_on_disk(file, schema, kept, columns)
    if not len(rows):
        raise RewindError(
            "no group had a best candidate that leads by enough and changes enough tokens: lower --min_lead or "
            "--min_changed"
        )
    sources, targets = (CodesOnDisk(rows, name) for name in ("source", "target"))
    actions = (action for part in rows.data.column("action").chunks for action in part.to_pylist())
    return rows_of_codes(vlm, "fdm", sources, targets, actions, _unequal(rows.data.column("weight").to_numpy()))


def _unequal(weights: Any) -> np.ndarray | None:
    """Weights as the rows have them, float32 [N]; None if all are alike."""
    return np.array(weights, np.float32) if len(np.unique(weights)) > 1 else None
