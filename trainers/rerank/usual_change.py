"""How many tokens usually change: what `keep_unchanged` lets free, from labelled triplets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rewards.keep_unchanged import KeepUnchanged, charge
from rl.models.inputs import token_ids
from rl.models.partial_attention import chunks
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet

SENTENCES = 512
"""Sentences whose usual change is kept, where triplets have no tasks."""
AT_ONCE = 256
"""Triplets whose tokens are held at once."""


class UsualChange:
    """The median number of tokens that change, by task, or by sentence where triplets have no tasks (the `SENTENCES`
    most frequent), and of all.

    Args:
        vlm: whose tokens are counted.
        triplets: labelled ones, with targets.
    """

    def __init__(self, vlm: UnifiedVLM, triplets: Sequence[Triplet]) -> None:
        self.counts: list[int] = []
        for part in chunks(len(triplets), AT_ONCE):
            here = [triplets[number] for number in range(len(triplets))[part]]
            sources = token_ids(vlm, [t.source for t in here])
            targets = token_ids(vlm, [t.target for t in here if t.target is not None])
            self.counts += [int(vlm.changed(b, a).sum()) for a, b in zip(sources, targets, strict=True)]
        self.by_task = any(triplet.task for triplet in triplets)
        self.names = [(t.task or "") if self.by_task else t.action for t in triplets]

    @cached_property
    def _groups(self) -> dict[str, list[int]]:
        """A task or sentence -> the numbers of its triplets."""
        groups: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            if name:
                groups.setdefault(name, []).append(number)
        return groups

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `keep_unchanged`."""
        often = sorted(self._groups, key=lambda name: -len(self._groups[name]))[:SENTENCES]
        medians = {name: self._median(self._groups[name]) for name in often}
        return {"default": self._median(range(len(self.counts))), "free" if self.by_task else "usual": medians}

    def without(self, number: int) -> float:
        """What is free for a triplet by what the others say: of its own task or sentence, else of the sentences nearest
        to it, else of all. To weigh `keep_unchanged` by triplets that it has learned from, or it would know the answer.
        """
        name = self.names[number]
        others = [other for other in self._groups.get(name, ()) if other != number]
        if others and name in self.arguments["free" if self.by_task else "usual"]:
            return self._median(others)
        default: float = self.arguments["default"]
        return default if self.by_task or not name else self._known.of_nearest(name, default)

    def charges(self, number: int, changed: Sequence[int]) -> list[float]:
        """`keep_unchanged` of candidates of a triplet that change so many tokens, by what the others say."""
        free = self.without(number)
        return [charge(count, free) for count in changed]

    @cached_property
    def _known(self) -> KeepUnchanged:
        return KeepUnchanged(**self.arguments)

    def _median(self, numbers: Sequence[int] | range) -> float:
        return float(np.median([self.counts[number] for number in numbers]))
