"""Best-of-N training: draw candidates, score them, keep the best of each group, fine-tune on it (rejection sampling).

The plain alternative to GRPO at the same number of sampled candidates. TRL has no trainer for it, so the second half is
our SFT trainer on the kept candidates' own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from rewards import Batch, Reward, score
from rl.errors import RewindError
from rl.models.dynamics import ForwardDynamics, token_ids
from rl.triplets import Candidate, Scored, Triplet


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


def scored_groups(
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    num_candidates: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    chunk_size: int = 32,
    normalise: bool = False,
) -> Iterator[tuple[Triplet, list[Scored]]]:
    """Candidates of each triplet's source and action with their scores, drawn a chunk of triplets at a time.

    Several processes share the triplets; each gets all groups, and the same ones as a single process would.
    `normalise` is `rewards.score`'s.
    """
    state, shares = PartialState(), []
    share = list(range(state.process_index, len(triplets), state.num_processes))
    drawn = _scored_share(
        fdm, rewards, [triplets[n] for n in share], num_candidates, temperature, seed, step, chunk_size, normalise
    )
    if state.num_processes == 1:
        yield from zip(triplets, drawn, strict=True)
        return
    for number, group in zip(share, drawn, strict=True):
        shares.append((number, [(s.candidate.ids, s.candidate.logprobs, s.scores, s.total) for s in group]))
    for number, group in sorted(gather_object(shares), key=lambda pair: pair[0]):
        yield triplets[number], [Scored(Candidate(a, b, fdm.backbone), c, d) for a, b, c, d in group]


def _scored_share(
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    count: int,
    temperature: float,
    seed: int,
    step: int,
    chunk_size: int,
    normalise: bool,
) -> Iterator[list[Scored]]:
    for start in range(0, len(triplets), chunk_size):
        part = triplets[start : start + chunk_size]
        sources = [triplet.source for triplet in part]
        groups = fdm.sample(sources, [t.action for t in part], count, temperature=temperature, seed=seed, step=step)
        batch = Batch(
            [t.action for t in part for _ in range(count)],
            [candidate for group in groups for candidate in group],
            [t.source for t in part for _ in range(count)],
            [t.target for t in part for _ in range(count)],
            [t.task for t in part for _ in range(count)],
        )
        scored = score(rewards, batch, normalise)
        for number in range(len(part)):
            yield scored[number * count : (number + 1) * count]


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
    """Triplets with the candidate that is kept of each, and the total of every candidate that could be scored."""
    kept: list[tuple[Triplet, Scored]] = []
    totals: list[float] = []
    settings: dict[str, Any] = {"temperature": temperature, "seed": seed, "step": step, "chunk_size": chunk_size}
    settings["normalise"] = normalise
    drawn = scored_groups(fdm, rewards, triplets, keep.num_candidates, **settings)
    for triplet, group in drawn:
        totals += [s.total for s in group if s.total is not None]
        best = keep.best(group, token_ids(fdm.backbone, [triplet.source])[0])
        if best is not None:
            kept.append((triplet, best))
    return kept, totals
