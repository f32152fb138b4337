"""Entries of a JSON file as people write it (a list, a list under "data", one object a line), read one by one."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl.data.lazy import Lazy
from rl.errors import RewindError
from rl.spilled import Spilled

_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class NoEntry:
    """What stands where an entry should: a reason to count by, and the rest of a sentence."""

    reason: str
    told: str

    @classmethod
    def line(cls, number: int, error: ValueError) -> NoEntry:
        """A line (from 1) that holds no JSON."""
        return cls("not JSON", f"line {number} is no JSON ({error})")


class JsonRows(Lazy[Any]):
    """Entries as the bytes of their JSON, one behind the other, read when asked for.

    Those of a long list lie in a temporary file (`rl.spilled`): memory holds eight bytes an entry where Python objects
    take thousands.

    Raises:
        RewindError: they cannot be written there, e.g. to a full disk.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        content, ends, self._broken = Spilled(), array("q", [0]), {}
        for number, entry in enumerate(entries):
            if isinstance(entry, NoEntry):
                self._broken[number] = entry
            else:
                content.add(json.dumps(entry).encode())
            ends.append(content.size)
        self._content, self._ends = content.mapped(), np.asarray(ends)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_content": bytes(self._content)}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def make(self, number: int) -> Any:
        if number in self._broken:
            return self._broken[number]
        return json.loads(self._content[self._ends[number] : self._ends[number + 1]])


def read_entries(path: Path) -> Iterator[Any]:
    """The entries of a file in UTF-8, or in what its byte-order mark says; a broken line of several is a `NoEntry`.

    Raises:
        RewindError: the file cannot be read, or holds no entries; a list that breaks off says so where it does.
    """
    text, lines = read_text(path), path.suffix.lower() in (".jsonl", ".ndjson")
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    try:
        if text.startswith("[", start):
            found: Iterator[Any] = _listed(text, start + 1)
        else:
            found = iter(_mapping(path, json.loads(text), lines))
        first = next(found, None)
    except ValueError as error:
        found = _lines(text)
        first, second = next(found, None), next(found, None)
        if not lines and (second is None or not isinstance(first, dict)):
            raise RewindError(f"{path} is not valid JSON: {error}") from error
        found = _chained([one for one in (first, second) if one is not None], found)
        first = next(found, None)
    if first is None:
        raise _nothing(path)
    return _named(path, _chained([first], found))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in what its byte-order mark says.

    Raises:
        RewindError: it cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
        return content.decode(json.detect_encoding(content))
    except OSError as error:
        raise RewindError(f"cannot read the triplets {path}: {error.strerror}") from error
    except ValueError as error:
        raise RewindError(f"{path} is no text in UTF-8: {error}") from error


def _nothing(path: Path) -> RewindError:
    return RewindError(f'{path} must be a JSON list (or {{"data": list}}, or JSON lines) with at least one triplet')


def _mapping(path: Path, found: Any, lines: bool) -> list[Any]:
    """The entries in a JSON value that is no list: one, or a list under "data"."""
    one = isinstance(found, dict) and ("input" in found or (lines and "data" not in found))
    entries = [found] if one else found.get("data") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries:
        raise _nothing(path)
    return entries


def _chained(first: Sequence[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest


def _named(path: Path, entries: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from entries
    except ValueError as error:
        raise RewindError(f"{path} is not valid JSON: {error}") from error


def _listed(text: str, place: int) -> Iterator[Any]:
    """The items of a JSON list from behind its bracket on, never all of them at once."""
    decoder, after = json.JSONDecoder(), "["
    while True:
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        if text.startswith("]", place) and after == "[":
            break
        item, place = decoder.raw_decode(text, place)
        yield item
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        after = text[place : place + 1]
        if after == "]":
            break
        if after != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        place += 1
    if _SPACE.match(text, place + 1).end() != len(text):  # type: ignore[union-attr]
        raise json.JSONDecodeError("Extra data", text, place + 1)


def _lines(text: str) -> Iterator[Any]:
    """What each line holds. (Not `splitlines`: it also splits at characters that may stand in a JSON text.)"""
    line, start = 1, 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        part = text[start:end]
        if part.strip():
            try:
                yield json.loads(part)
            except ValueError as error:
                yield NoEntry.line(line, error)
        line, start = line + 1, end + 1
