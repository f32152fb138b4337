"""Entries of a JSON file one after the other, in memory that does not grow with the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rl.data.entries import NoEntry, read_entries
from rl.errors import RewindError

AT_ONCE, LONGEST = 2**20, 2**26
"""Characters that are read at once, and those of an entry at most: a file that is no JSON is not read to its end."""


def entries_of(path: Path) -> Iterator[Any]:
    """What `read_entries` gives, an entry at a time; only a list under "data" is held as a whole.

    Raises:
        RewindError: the file cannot be read, or holds no entries; perhaps after some of them.
    """
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        with path.open(encoding=encoding, newline="\n") as text:
            kind = _kind(text)
            text.seek(0)
            count = 0
            for count, entry in enumerate(_of_kind(path, text, kind), 1):  # noqa: B007
                yield entry
    except OSError as error:
        raise RewindError(f"cannot read the triplets {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RewindError(f"{path} is no text in UTF-8: {error}") from error
    if not count:
        raise RewindError(f'{path} must be a JSON list (or {{"data": list}}, or JSON lines) with at least one triplet')


def _kind(text: TextIO) -> str:
    """'list', 'lines', or 'other', which has to be read as a whole."""
    while (first := text.read(1)).isspace():
        pass
    if first == "[":
        return "list"
    if first == "{":
        try:
            one = json.loads(first + text.readline(LONGEST))
        except ValueError:
            return "other"
        return "lines" if "input" in one else "other"
    return "other"


def _of_kind(path: Path, text: TextIO, kind: str) -> Iterator[Any]:
    if kind == "other":
        yield from read_entries(path)
    elif kind == "list":
        yield from _list(path, text)
    else:
        for number, line in enumerate(text, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    yield NoEntry.line(number, error)


def _list(path: Path, text: TextIO) -> Iterator[Any]:
    """The items of a JSON list."""
    decode, buffer, at, done, number = json.JSONDecoder().raw_decode, "", 0, False, 0
    while buffer[at : at + 1] != "[":
        buffer, at, done = _more(text, buffer, at + 1 if buffer else 0)
    at += 1
    while True:
        at, mark = _after_space(buffer, at)
        if not mark:
            if done:
                raise RewindError(f"{path} is not valid JSON: the list does not end (after entry {number})")
            buffer, at, done = _more(text, buffer, at)
            continue
        if mark == "]":
            return _ends(path, text, buffer, at + 1)
        begin = at
        if number:
            if mark != ",":
                raise RewindError(f"{path} is not valid JSON: there is '{mark}' behind entry {number}")
            begin, mark = _after_space(buffer, at + 1)
        try:
            item, end = decode(buffer, begin)
        except json.JSONDecodeError as error:  # its line and column are those of what is read at once
            if done or len(buffer) - at > LONGEST:
                raise RewindError(f"{path} is not valid JSON: entry {number + 1}: {error.msg}") from error
            buffer, at, done = _more(text, buffer, at)
            continue
        if end == len(buffer) and not done:  # a number may go on
            buffer, at, done = _more(text, buffer, at)
            continue
        yield item
        at, number = end, number + 1


def _ends(path: Path, text: TextIO, buffer: str, at: int) -> None:
    """Nothing but white space may follow a list: a second one behind it would be lost."""
    done = False
    while not done:
        at, mark = _after_space(buffer, at)
        if mark:
            raise RewindError(f"{path} is not valid JSON: there is '{mark}' behind the end of the list")
        buffer, at, done = _more(text, buffer, at)


def _more(text: TextIO, buffer: str, at: int) -> tuple[str, int, bool]:
    """What is left of the buffer and as much again, where it then stands, and whether the file has ended."""
    left = buffer[at:]
    new = text.read(max(AT_ONCE, len(left)))
    return left + new, 0, not new


def _after_space(buffer: str, at: int) -> tuple[int, str]:
    """The next place that is no white space, and what stands there; '' at the end."""
    while (mark := buffer[at : at + 1]) and mark in " \t\r\n":
        at += 1
    return at, mark
