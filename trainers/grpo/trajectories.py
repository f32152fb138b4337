"""Trajectories for GRPO: several actions one after the other, each prediction the source of the next.

Every prediction is a row of its own, because a forward model reads nothing but the present source and action. As in
`rl.search.rollout`, a prediction goes on as the *token ids* that were drawn, not as its picture encoded anew: the loss
must see the very prompt that was sampled from, and rewards that count changed tokens must not blame a prediction for
what encoding has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.codes import Codes, Grid
from rl.data.candidates.store import CandidateStore
from rl.models.distribution import TokenDistribution
from rl.models.drafting import Counts
from rl.models.drawing import sampled_pictures
from rl.models.inputs import token_ids
from rl.models.noise import Noise
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.triplets import Candidate, Scored, Triplet
from trainers.grpo.role import Part

STEP_NOISE = 2**32
"""What a step of a trajectory adds to the noise's step, beyond any step of training or of evaluation."""


@dataclass(frozen=True)
class Row:
    """One prediction of one trajectory.

    `number` is the chain's, `member` the trajectory's in its group, `step` counts from 0. `triplet` is that step of the
    chain, its source from the second step on the prediction before it, a `Candidate`; `source_ids` are its tokens.
    """

    number: int
    member: int
    step: int
    triplet: Triplet
    source_ids: Codes
    candidate: Candidate

    def prompt_ids(self) -> list[int]:
        """What it was drawn from."""
        return self.candidate.backbone.fdm_prompt(self.source_ids, self.triplet.action)


@dataclass(frozen=True)
class ScoredRow(Row):
    """A prediction with its scores."""

    scored: Scored


class SourceCodes(Sequence[Codes]):
    """Codes of each chain's first source, looked up or encoded when they are asked for, and kept by the backbone alone.

    A run may see few of its pictures: of hundreds of thousands nobody encodes all for the start.
    """

    def __init__(self, vlm: UnifiedVLM, chains: Sequence[Sequence[Triplet]]) -> None:
        self._vlm, self._chains = vlm, chains

    def __len__(self) -> int:
        return len(self._chains)

    def __getitem__(self, number: Any) -> Any:
        return self.of([number])[0]

    def of(self, numbers: Sequence[int]) -> list[Codes]:
        """The codes of some chains' first sources."""
        return self._vlm.codes([self._picture(number) for number in numbers])

    def grids(self) -> set[Grid]:
        """The grids that occur."""
        return {self._vlm.grid_of(self._picture(number)) for number in range(len(self))}

    def _picture(self, number: int) -> Picture:
        return self._chains[number][0].source


class Trajectories:
    """Draws trajectories along chains of actions.

    Args:
        vlm: the backbone; the caller chooses the adapter.
        distribution: of image tokens, the one that the loss has too.
        chains: triplets that follow one another, equally many each; only the first source of a chain is looked at, and
            rewards may see the true targets.
        draft: whether a source is the draft of what is drawn (`rl.models.drafting`).

    Attributes:
        counts: of all that was drawn with a draft; None without.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        distribution: TokenDistribution,
        chains: Sequence[Sequence[Triplet]],
        draft: bool = False,
    ) -> None:
        self.vlm, self.distribution, self.chains = vlm, distribution, chains
        self.steps = len(chains[0])
        self.counts = Counts() if draft else None
        self.source_ids = SourceCodes(vlm, chains)

    def draw(self, parts: Sequence[Part], noise: Noise, max_rows: int | None = None) -> list[Row]:
        """Every prediction of the parts, ordered by part, trajectory and step."""
        rows = self._first(parts, noise, max_rows)
        by_step = [rows]
        for step in range(1, self.steps):
            rows = self._next(rows, step, replace(noise, step=noise.step + step * STEP_NOISE), max_rows)
            by_step.append(rows)
        return [row for trajectory in zip(*by_step, strict=True) for row in trajectory]

    def _first(self, parts: Sequence[Part], noise: Noise, max_rows: int | None = None) -> list[Row]:
        """The first step of each trajectory: a group's members are drawn from one prefill."""
        drawn: dict[Part, list[Candidate]] = {}
        asked = list(dict.fromkeys(number for number, _ in parts))
        known = dict(zip(asked, self.source_ids.of(asked), strict=True))
        for members in dict.fromkeys(members for _, members in parts):
            numbers = [number for number, those in parts if those == members]
            sources, actions = [known[n] for n in numbers], [self.chains[n][0].action for n in numbers]
            found = self._sample(sources, actions, len(members), members.start, noise, max_rows)
            drawn |= {(number, members): group for number, group in zip(numbers, found, strict=True)}
        return [
            Row(number, member, 0, self.chains[number][0], known[number], candidate)
            for number, members in parts
            for member, candidate in zip(members, drawn[number, members], strict=True)
        ]

    def _next(self, rows: Sequence[Row], step: int, noise: Noise, max_rows: int | None = None) -> list[Row]:
        """The next step of each trajectory. Those that have come to one picture share it, so that rewards which compare
        the candidates of a source with one another do so.
        """
        arrived: dict[tuple[int, bytes], Candidate] = {}
        sources: list[Any] = [
            arrived.setdefault((row.number, row.candidate.ids.tobytes()), row.candidate) for row in rows
        ]
        triplets = [
            replace(self.chains[row.number][step], source=source) for row, source in zip(rows, sources, strict=True)
        ]
        ids = [source.codes for source in sources]
        found = self._sample(ids, [t.action for t in triplets], 1, [row.member for row in rows], noise, max_rows)
        return [
            Row(row.number, row.member, step, triplet, known, one)
            for row, triplet, known, (one,) in zip(rows, triplets, ids, found, strict=True)
        ]

    def _sample(
        self,
        sources: list[Codes],
        actions: list[str],
        count: int,
        first: int | list[int],
        noise: Noise,
        max_rows: int | None,
    ) -> list[list[Candidate]]:
        how: Any = {"num_samples": count, "first": first, "noise": noise, "max_rows": max_rows, "counts": self.counts}
        return sampled_pictures(self.vlm, sources, actions, self.distribution, **how)


def step_means(rows: Sequence[ScoredRow], steps: int) -> dict[int, float]:
    """The mean total of each step of trajectories, by its number from 1; none where there is one step alone."""
    totals = {step: [row.scored.total for row in rows if row.step == step] for step in range(steps if steps > 1 else 0)}
    known = {step: [total for total in found if total is not None] for step, found in totals.items()}
    return {step + 1: float(np.mean(found)) for step, found in known.items() if found}


def changed_tokens(vlm: UnifiedVLM, rows: Sequence[ScoredRow], true: bool) -> Tensor:
    """Where a row's candidate, or its true target, shows something else than its source, bool [B, K]."""
    sources = [row.source_ids for row in rows]
    others: list[Any] = [row.candidate.ids for row in rows]
    if true:
        targets = [row.triplet.target for row in rows]
        others = list(token_ids(vlm, [target for target in targets if target is not None], sources))
    return torch.from_numpy(np.stack([vlm.changed(a, b) for a, b in zip(others, sources, strict=True)]))


def keep(store: CandidateStore, parts: Sequence[Sequence[ScoredRow]], seed: int, step: int) -> None:
    """Append what was drawn and scored; a process that drew a part of a group keeps that part's numbers."""
    for first in dict.fromkeys(part[0].member for part in parts):
        groups = [(part[0].triplet, [row.scored for row in part]) for part in parts if part[0].member == first]
        store.append(groups, seed=seed, step=step, first=first)
