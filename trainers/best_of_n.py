"""Best-of-N training: draw candidates, score them, keep the best of each group, fine-tune on it (rejection sampling).

The plain alternative to GRPO at the same number of sampled candidates. TRL has no trainer for it, so the second half is
our SFT trainer on the kept candidates' own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards import Reward
from rl.errors import RewindError
from rl.models.dynamics import ForwardDynamics, token_ids
from rl.triplets import Scored, Triplet
from rl.unified import UnifiedVLM
from trainers.candidates import scored_groups


@dataclass(frozen=True)
class Keep:
    """Which of a group's candidates are learned from.

    Args:
        num_candidates: N, candidates a source and action.
        min_lead: the best total must lead the group's mean by this much: a group that is all alike teaches nothing.
        min_changed: tokens that must differ from the source: near-copies are left out.
    """

    num_candidates: int = 8
    min_lead: float = 0.0
    min_changed: int = 1

    def __post_init__(self) -> None:
        if self.num_candidates < 2:
            raise RewindError(f"best-of-N training needs at least 2 candidates, not {self.num_candidates}")
        if self.min_lead < 0 or self.min_changed < 0:
            raise RewindError("min_lead and min_changed must be 0 or more")

    def best(self, group: Sequence[Scored], source_ids_K: Sequence[int]) -> Scored | None:
        """The best candidate of a group, or None if it leads too little or is too near a copy."""
        scorable = [(s.total, s.candidate.logprob, number) for number, s in enumerate(group) if s.total is not None]
        if not scorable:
            return None
        total, _, number = max(scorable)
        lead = total - float(np.mean([t for t, _, _ in scorable]))
        if lead < max(self.min_lead, 1e-6):
            return None
        changed = int((group[number].candidate.ids != np.asarray(source_ids_K)).sum())
        return group[number] if changed >= self.min_changed else None


def keep_best(
    vlm: UnifiedVLM, groups: Iterable[tuple[Triplet, Sequence[Scored]]], keep: Keep
) -> tuple[list[tuple[Triplet, Scored]], list[float]]:
    """Triplets with the candidate that is kept of each, and the total of every candidate that could be scored."""
    kept: list[tuple[Triplet, Scored]] = []
    totals: list[float] = []
    for triplet, group in groups:
        totals += [s.total for s in group if s.total is not None]
        best = keep.best(group, token_ids(vlm, [triplet.source])[0])
        if best is not None:
            kept.append((triplet, best))
    return kept, totals


def best_candidates(
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    keep: Keep,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    chunk_size: int = 32,
    normalise: bool = False,
) -> tuple[list[tuple[Triplet, Scored]], list[float]]:
    """`keep_best` of `scored_groups`."""
    settings: dict[str, Any] = {"temperature": temperature, "seed": seed, "step": step, "chunk_size": chunk_size}
    settings["normalise"] = normalise
    groups = scored_groups(fdm, rewards, triplets, keep.num_candidates, **settings)
    return keep_best(fdm.backbone, groups, keep)
