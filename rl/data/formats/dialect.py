"""Entries of other data sets than AURORA's: how they are known, and what they say in AURORA's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.data.entries import NoEntry
from rl.data.places import ANCESTORS, below
from rl.paths import as_written, is_file

Raw = Mapping[str, Any]
Entries = Iterable[dict[str, Any]]
_UNLIKE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading an entry raises that lacks a key, or has something else under it than its data set writes."""


@dataclass(frozen=True)
class Dialect:
    """How a data set writes its entries.

    `patterns` are, by the kind of file, the names that its files may have, filled in with the `facts` of an entry:
    which of them it is, is found out by trying. `convert` is given one for each kind.
    """

    name: str
    fits: Callable[[Raw], bool]
    convert: Callable[[Raw, Mapping[str, str]], Entries]
    facts: Callable[[Raw], Mapping[str, Any]] = lambda _: {}
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def places(self, first: Sequence[Raw], folder: Path, image_root: str | Path | None) -> dict[str, str]:
        """The pattern by which files of each kind are found, tried with a few entries; where none is, the first."""
        folder = as_written(folder)
        roots = [folder, *folder.parents[:ANCESTORS]] if image_root is None else [as_written(image_root), folder]
        known = [facts for entry in first if (facts := self._facts(entry)) is not None]
        return {kind: _found(patterns, roots, known) or patterns[0] for kind, patterns in self.patterns.items()}

    def entries(self, raw: Raw, places: Mapping[str, str]) -> Iterable[dict[str, Any] | NoEntry]:
        """What an entry is in AURORA's keys; a `NoEntry` where it is not written as the dialect says."""
        try:
            return list(self.convert(raw, places))
        except _UNLIKE as error:
            told = f"is not written as --format {self.name} says ({type(error).__name__}: {error})"
            return [NoEntry(f"not {self.name}", told)]

    def _facts(self, entry: Raw) -> Mapping[str, Any] | None:
        try:
            return self.facts(entry)
        except _UNLIKE:
            return None


def _found(patterns: Sequence[str], roots: Sequence[Path], known: Sequence[Mapping[str, Any]]) -> str | None:
    """The first pattern that leads to a file from one of the folders."""
    for root in roots:
        for pattern in patterns:
            names = {pattern.format(**facts) for facts in known}
            if any((path := below(name, root, [root])) is not None and is_file(path) for name in names):
                return pattern
    return None
