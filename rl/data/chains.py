"""Chains: triplets that follow one another, each starting from the very picture that the one before ended in."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from typing import overload

import numpy as np

from rl.data.candidates.store import picture_key
from rl.data.triplet_table import joined
from rl.errors import RewindError
from rl.triplets import Triplet


class Chains(Sequence[list[Triplet]]):
    """Chains of triplets, each put together when somebody asks for it.

    Args:
        triplets: of which they are made.
        number_NS: which of them, int64 [chain, step].
    """

    def __init__(self, triplets: Sequence[Triplet], number_NS: np.ndarray) -> None:
        self._triplets, self._number_NS = triplets, number_NS

    def __len__(self) -> int:
        return len(self._number_NS)

    @overload
    def __getitem__(self, number: int) -> list[Triplet]: ...
    @overload
    def __getitem__(self, number: slice) -> Chains: ...
    def __getitem__(self, number: int | slice) -> list[Triplet] | Chains:
        if isinstance(number, slice):
            return Chains(self._triplets, self._number_NS[number])
        return [self._triplets[int(one)] for one in self._number_NS[number]]

    def __add__(self, other: Chains) -> Chains:
        if not len(other):
            return self
        numbers = np.concatenate([self._number_NS, other._number_NS + len(self._triplets)])
        return Chains(joined([self._triplets, other._triplets]), numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def chains(triplets: Sequence[Triplet], steps: int) -> Chains:
    """Chains of `steps` triplets, at most one from each triplet on, in the order of their first ones.

    Two triplets follow one another if the target of the first and the source of the second are equal pixel by pixel,
    in whatever files: the key frames of a video that `mine_videos.py` writes as pairs do, before and after labelling.
    Of several that could follow, it is the next one in the order of the list, else the first of all; no triplet stands
    in a chain twice. The last target of a chain may be unknown. Chains may overlap; of one step, they are the triplets.

    Raises:
        RewindError: fewer than one step.
    """
    if steps < 1:
        raise RewindError(f"a chain has at least 1 step, not {steps}")
    if steps == 1:
        return Chains(triplets, np.arange(len(triplets))[:, None])
    starting: dict[str, list[int]] = {}
    for number, triplet in enumerate(triplets):
        starting.setdefault(picture_key(triplet.source), []).append(number)
    following = [
        [] if triplet.target is None else starting.get(picture_key(triplet.target), []) for triplet in triplets
    ]
    found = [_chain(number, following, steps) for number in range(len(triplets))]
    return Chains(triplets, np.array([chain for chain in found if chain], dtype=np.int64).reshape(-1, steps))


def _chain(first: int, following: Sequence[Sequence[int]], steps: int) -> list[int]:
    """The first chain from a triplet on, found depth first; empty if there is none."""

    def grown(chain: list[int]) -> list[int]:
        if len(chain) == steps:
            return chain
        offered = following[chain[-1]]  # in the order of the list, in which the next one comes first
        start = bisect(offered, chain[-1])
        for place in range(len(offered)):
            number = offered[(start + place) % len(offered)]
            if number not in chain and (whole := grown([*chain, number])):
                return whole
        return []

    return grown([first])
