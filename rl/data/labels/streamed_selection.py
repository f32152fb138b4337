"""Selection of labelled triplets from a file of any length, in memory that grows with what is chosen alone.

The file is streamed and only the first entries of `select_stratified`'s order are kept: what is chosen of all is among
what is chosen of any part, so the rest can go. Then the classes take turns; pictures are looked at only of entries
whose turn it is. If so many of those cannot be taken that what was kept does not do, more is kept, and all read again.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl.data.labels.near import Seen
from rl.data.labels.selection import select_stratified
from rl.data.labels.selection_rules import Rules, number_in
from rl.errors import RewindError
from rl.triplets import Triplet
from rl.words import words_of

BLOCK, AHEAD, SPARE = 32_768, 256, 1000
"""Entries read between two looks at what is kept, and those whose pictures are looked at together."""
_logger = logging.getLogger("rl")


@dataclass
class Selection:
    """What was chosen: triplets by entry number, in the order of choice, with the class of each; and how many entries
    were passed over, by reason, of how many.
    """

    chosen: dict[int, Triplet]
    classes: list[Any]
    passed_over: Counter[str]
    total: int


@dataclass
class _Row:
    number: int
    entry: dict[str, Any]
    action: str
    value: float
    group: Any


class _Pool:
    """The first `size` of all rows that were added, in the order of `select_stratified`."""

    def __init__(self, size: int, of_an_action: int | None) -> None:
        self.size, self.rows, self.cut = size, list[_Row](), False
        self.of_an_action = of_an_action
        self.thinned = set[tuple[Any, str]]()
        """Groups and actions of which only the best rows were kept."""

    def add(self, row: _Row) -> None:
        self.rows.append(row)
        if len(self.rows) >= self.size + max(BLOCK, self.size):
            self.trim()

    def trim(self) -> list[int]:
        """Let go of all others; then the order of choice, as numbers of `rows`, which keep that of the file."""
        if self.of_an_action is not None:  # else one sentence that stands there a million times would fill it
            self._thin(self.of_an_action)
        order = self._order()
        if len(order) < len(self.rows):
            self.cut = True
            self.rows = [self.rows[n] for n in sorted(order)]
            order = self._order()
        return order

    def _thin(self, most: int) -> None:
        """Let go of all but the best ones of each action in a group."""
        counts = Counter[Any]()
        kept = []
        for place in sorted(range(len(self.rows)), key=lambda n: -self.rows[n].value):
            row = self.rows[place]
            counts[row.group, row.action] += 1
            if counts[row.group, row.action] <= most:
                kept.append(place)
            else:
                self.thinned.add((row.group, row.action))
        self.rows = [self.rows[place] for place in sorted(kept)]

    def _order(self) -> list[int]:
        groups = sorted_any({row.group for row in self.rows})
        code = {group: number for number, group in enumerate(groups)}
        chosen = select_stratified([row.value for row in self.rows], [code[row.group] for row in self.rows], self.size)
        found: list[int] = chosen.tolist()
        return found


def select_entries(
    read: Callable[[], Iterable[Any]],
    look: Callable[[dict[int, Any]], dict[int, Triplet]],
    action_of: Callable[[int, Any], str | None],
    k: int,
    rules: Rules,
    name: str = "the data",
) -> Selection:
    """Choose `k` entries.

    Args:
        read: the entries, from the first one on each time it is called.
        look: entries by number as triplets, those that can be used.
        action_of: the action of an entry by its number, None for one that cannot be used.
        k: how many to choose.
        rules: which.
        name: of the file, for errors.

    Raises:
        RewindError: k below 1, an entry without a finite number in a column that decides.
    """
    if k < 1:
        raise RewindError(f"k must be at least 1, not {k}")
    edges = _motion_edges(read, action_of, rules, name)
    size = k + k // 4 + SPARE
    of_an_action = None if rules.max_per_action is None else 4 * rules.max_per_action + 64
    known: dict[int, Triplet | None] = {}
    while True:
        pool, passed_over, total = _Pool(size, of_an_action), Counter[str](), 0
        for number, entry in enumerate(read()):
            total = number + 1
            action = action_of(number, entry)
            if action is None:
                continue
            for column in (rules.by, *rules.least):
                number_in(name, number, entry, column)
            reason = rules.passed_over(entry, action)
            if reason is None:
                group = (rules.class_of(entry, action), _bin(entry, edges))
                pool.add(_Row(number, entry, action, float(entry[rules.by]), group))
            else:
                passed_over[reason] += 1
        walk = _Walk(pool, look, rules, known)
        if walk.chosen_of(k):
            chosen = walk.chosen
            return Selection(
                {row.number: triplet for row, triplet in chosen},
                [row.group[0] for row, _ in chosen],
                passed_over + walk.passed_over,
                total,
            )
        size *= 4
        of_an_action = None if of_an_action is None else 4 * of_an_action
        _logger.warning("many entries cannot be taken: the file is read again, with %d of them kept", size)


class _Walk:
    """The classes take turns, each time the best one of theirs that can be taken."""

    def __init__(
        self,
        pool: _Pool,
        look: Callable[[dict[int, Any]], dict[int, Triplet]],
        rules: Rules,
        known: dict[int, Triplet | None],
    ) -> None:
        order = pool.trim()
        self.rows, self.cut, self.thinned = [pool.rows[n] for n in order], pool.cut, pool.thinned
        self.look, self.rules, self.known = look, rules, known
        self.ahead = 0
        self.chosen: list[tuple[_Row, Triplet]] = []
        self.passed_over = Counter[str]()

    def chosen_of(self, k: int) -> bool:
        """Choose; False if a class, or an action in it, has come to its end and there had been more than was kept."""
        rules, seen = self.rules, None if self.rules.near_duplicates is None else Seen(self.rules.near_duplicates)
        queues: dict[Any, deque[int]] = {}
        for place, row in enumerate(self.rows):
            queues.setdefault(row.group, deque()).append(place)
        counts = Counter({group: len(queue) for group, queue in queues.items()})
        deepest = max(counts.values(), default=0)
        of_class, of_action = Counter[Any](), Counter[str]()
        groups = deque(sorted_any(queues))
        while groups and len(self.chosen) < k:
            group = groups.popleft()
            if rules.max_per_class is not None and of_class[group[0]] >= rules.max_per_class:
                continue
            while queues[group]:
                place = queues[group].popleft()
                row = self.rows[place]
                action = _said(row.action) if rules.max_per_action is not None else ""
                if rules.max_per_action is not None and of_action[action] >= rules.max_per_action:
                    self.passed_over["beyond max_per_action"] += 1
                    continue
                triplet = self._looked(place, k)
                if triplet is None:
                    continue
                if seen is not None and not seen.take(triplet):
                    self.passed_over["near-duplicate"] += 1
                    continue
                self.chosen.append((row, triplet))
                of_class[group[0]] += 1
                of_action[action] += 1
                groups.append(group)
                break
            else:  # of a class that is not among the deepest ones all rows were kept
                if self.cut and counts[group] >= deepest - 1:
                    return False
                if any(
                    of_action[_said(action)] < (rules.max_per_action or 0) for of, action in self.thinned if of == group
                ):
                    return False
        return True

    def _looked(self, place: int, k: int) -> Triplet | None:
        """The triplet of a row; pictures of rows whose turn comes next are looked at with it."""
        if self.rows[place].number not in self.known:
            begin = max(place, self.ahead)
            part = [self.rows[place], *self.rows[begin : begin + (k if self.ahead == 0 else AHEAD)]]
            fresh = {row.number: row.entry for row in part if row.number not in self.known}
            self.ahead = begin + len(part) - 1
            found = self.look(fresh)
            self.known |= {number: found.get(number) for number in fresh}
        return self.known[self.rows[place].number]


def _said(action: str) -> str:
    return " ".join(words_of(action))


def sorted_any(values: Iterable[Any]) -> list[Any]:
    """Values in their order, or that of their texts where they have none."""
    every = list(values)
    try:
        return sorted(every)
    except TypeError:
        return sorted(every, key=repr)


def _motion_edges(
    read: Callable[[], Iterable[Any]], action_of: Callable[[int, Any], str | None], rules: Rules, name: str
) -> Sequence[float]:
    """Where the bins of motion meet: quantiles of all entries that may be chosen."""
    if rules.motion_bins == 1:
        return ()
    found = array("f")
    for number, entry in enumerate(read()):
        action = action_of(number, entry)
        if action is not None:
            for column in rules.least:
                number_in(name, number, entry, column)
            motion = number_in(name, number, entry, "motion")
            if rules.passed_over(entry, action) is None:
                found.append(motion)
    if not found:
        return ()
    edges: list[float] = np.quantile(np.array(found), np.arange(1, rules.motion_bins) / rules.motion_bins).tolist()
    return edges


def _bin(entry: dict[str, Any], edges: Sequence[float]) -> int:
    return int(np.searchsorted(edges, entry["motion"], side="right")) if len(edges) else 0
