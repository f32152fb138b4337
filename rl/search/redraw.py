"""What refinement asks of a forward model: the rest of a candidate anew, and how likely one is that nobody drew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl.pictures import Picture
from rl.triplets import Candidate

if TYPE_CHECKING:
    from rl.models.roles import ForwardDynamics


def draw_rest(
    fdm: ForwardDynamics, sources: Sequence[Picture], actions: Sequence[str], sampling: dict[str, Any]
) -> Callable[..., list[list[Candidate]]]:
    """What `refine` draws with: candidates of some sources with some tokens kept."""

    def draw(
        step: int, numbers: Sequence[int], kept: Sequence[np.ndarray], counts: Sequence[int]
    ) -> list[list[Candidate]]:
        drawn: dict[int, list[Candidate]] = {}
        for count in sorted(set(counts)):  # sources that draw equally many are drawn together
            rows = [row for row, wanted in enumerate(counts) if wanted == count]
            chosen = [sources[numbers[row]] for row in rows], [actions[numbers[row]] for row in rows]
            settings = {**sampling, "step": step, "kept": [kept[row] for row in rows]}
            drawn |= dict(zip(rows, fdm.sample(*chosen, num_samples=count, **settings), strict=True))
        return [drawn[row] for row in range(len(counts))]

    return draw


def likely(
    fdm: ForwardDynamics, sources: Sequence[Picture], actions: Sequence[str], temperature: float
) -> Callable[..., list[list[np.ndarray]]]:
    """What tells `refine` how likely candidates are that nobody drew."""

    def told(numbers: Sequence[int], groups: Sequence[Sequence[Candidate]]) -> list[list[np.ndarray]]:
        rows = [(n, one) for n, group in zip(numbers, groups, strict=True) for one in group]
        asked = [sources[n] for n, _ in rows], [one for _, one in rows], [actions[n] for n, _ in rows]
        found = iter(fdm.log_probs(*asked, temperature))
        return [[next(found) for _ in group] for group in groups]

    return told
