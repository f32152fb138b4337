"""Entries of a JSON file as people write it: a list, a list under "data", or one object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.errors import RewindError


@dataclass(frozen=True)
class NoEntry:
    """A line that holds no JSON: its number (from 1), and why not."""

    line: int
    error: str


def read_entries(path: Path) -> list[Any]:
    """The entries of a file in UTF-8, or in what its byte-order mark says; a broken line of several is a `NoEntry`.

    Raises:
        RewindError: the file cannot be read, or holds no entries.
    """
    try:
        content = path.read_bytes()
        text = content.decode(json.detect_encoding(content))
    except OSError as error:
        raise RewindError(f"cannot read the triplets {path}: {error.strerror}") from error
    except ValueError as error:
        raise RewindError(f"{path} is no text in UTF-8: {error}") from error
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        found = _lines(text)
        by_name = path.suffix.lower() in (".jsonl", ".ndjson") and any(isinstance(one, dict) for one in found)
        if not by_name and not (len(found) > 1 and isinstance(found[0], dict)):
            raise RewindError(f"{path} is not valid JSON: {error}") from error
    if isinstance(found, dict):
        found = [found] if "input" in found else found.get("data")
    if not isinstance(found, list) or not found:
        raise RewindError(f'{path} must be a JSON list (or {{"data": list}}, or JSON lines) with at least one triplet')
    return found


def _lines(text: str) -> list[Any]:
    """What each line holds. (Not `splitlines`: it also splits at characters that may stand in a JSON text.)"""
    found: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                found.append(NoEntry(number, str(error)))
    return found
