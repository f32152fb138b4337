"""Triplets of data sets, each made when somebody asks for it: memory grows by some hundred bytes a triplet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np

from rl.triplets import Triplet, columns_of

SHARED = 1024
"""Triplets that were asked for last and are handed out again, beside all that somebody holds: groups of candidates are
told apart by their pictures' identity, so that a triplet of a batch has to be one object.
"""


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one data set: how a triplet is made of one, and the names of its further columns."""

    make: Callable[[int], Triplet]
    columns: tuple[str, ...] = ()


class Triplets(Sequence[Triplet]):
    """A sequence of triplets over the rows of data sets; slices, sums and choices of it are such sequences, too.

    Args:
        parts: the data sets.
        part_N, row_N: of which of them each triplet is, and which row there; int32 [N].
    """

    def __init__(self, parts: Sequence[Part], part_N: np.ndarray, row_N: np.ndarray) -> None:
        self._parts, self._part_N, self._row_N = tuple(parts), part_N, row_N
        self._last: OrderedDict[int, Triplet] = OrderedDict()
        self._held: WeakValueDictionary[int, Triplet] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return Triplets, (self._parts, self._part_N, self._row_N)

    @classmethod
    def of(cls, part: Part, rows: Iterable[int]) -> Triplets:
        """The triplets of chosen rows of one data set."""
        row_N = np.fromiter(rows, dtype=np.int32)
        return cls([part], np.zeros(len(row_N), dtype=np.int32), row_N)

    @property
    def columns(self) -> list[str]:
        """Names of the further columns of all parts."""
        return list(dict.fromkeys(name for part in self._parts for name in part.columns))

    def __len__(self) -> int:
        return len(self._row_N)

    @overload
    def __getitem__(self, number: int) -> Triplet: ...
    @overload
    def __getitem__(self, number: slice) -> Triplets: ...
    def __getitem__(self, number: int | slice) -> Triplet | Triplets:
        if isinstance(number, slice):
            return Triplets(self._parts, self._part_N[number], self._row_N[number])
        place = range(len(self))[number]
        found = self._last.pop(place, None) or self._held.get(place)
        if found is None:
            found = self._parts[int(self._part_N[place])].make(int(self._row_N[place]))
        self._last[place] = self._held[place] = found
        if len(self._last) > SHARED:
            self._last.popitem(last=False)
        return found

    def take(self, numbers: Any) -> Triplets:
        """The triplets of these numbers, int64 [M], in their order; one may come several times."""
        chosen = np.asarray(numbers, dtype=np.int64)
        return Triplets(self._parts, self._part_N[chosen], self._row_N[chosen])

    def __add__(self, other: Sequence[Triplet]) -> Triplets:
        return joined([self, other])

    def __radd__(self, other: Sequence[Triplet]) -> Triplets:
        return joined([other, self])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} triplets>"


def joined(several: Sequence[Sequence[Triplet]]) -> Triplets:
    """Sequences of triplets, one behind the other."""
    parts: list[Part] = []
    part_N, row_N = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for one in several:
        table = one if isinstance(one, Triplets) else _of_list(one)
        part_N.append(table._part_N + len(parts))
        row_N.append(table._row_N)
        parts += table._parts
    return Triplets(parts, np.concatenate(part_N), np.concatenate(row_N))


def with_column(triplets: Triplets, name: str, value: Any) -> Triplets:
    """Triplets with a further column of one value, but for those that have it already."""

    def extended(part: Part) -> Part:
        def make(row: int) -> Triplet:
            found = part.make(row)
            return replace(found, more={name: value, **found.more})

        return Part(make, tuple(dict.fromkeys((*part.columns, name))))

    return Triplets([extended(part) for part in triplets._parts], triplets._part_N, triplets._row_N)


def without_outcomes(triplets: Triplets) -> Triplets:
    """Triplets with the source in the place of the target: what a proposer of actions learns from."""

    def still(part: Part) -> Part:
        def make(row: int) -> Triplet:
            found = part.make(row)
            return replace(found, target=found.source)

        return Part(make, part.columns)

    return Triplets([still(part) for part in triplets._parts], triplets._part_N, triplets._row_N)


def _of_list(given: Sequence[Triplet]) -> Triplets:
    return Triplets.of(Part(given.__getitem__, tuple(columns_of(given))), range(len(given)))
