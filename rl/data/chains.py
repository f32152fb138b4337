"""Chains: triplets that follow one another, each starting from the very picture that the one before ended in."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

from rl.data.store import picture_key
from rl.errors import RewindError
from rl.triplets import Triplet


def chains(triplets: Sequence[Triplet], steps: int) -> list[list[Triplet]]:
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
        return [[triplet] for triplet in triplets]
    starting: dict[str, list[int]] = {}
    for number, triplet in enumerate(triplets):
        starting.setdefault(picture_key(triplet.source), []).append(number)
    following = [
        [] if triplet.target is None else starting.get(picture_key(triplet.target), []) for triplet in triplets
    ]
    found = [_chain(number, following, steps) for number in range(len(triplets))]
    return [[triplets[number] for number in chain] for chain in found if chain]


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
