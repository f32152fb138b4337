"""Whether a run may go on: what its arguments were when it began, and what they are now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SECTIONS = ("training", "model", "budget")
"""Parts of a config that hold arguments of their own."""
NEVER_COMPARED = {"resume", "overwrite", "config", "output", "output_dir"}
FINGERPRINT = "base_fingerprint"
"""In a config, what the weights of `base` are: where they are the same, it may lie elsewhere."""
ASKED = ("idm_weights", "judge_idm_weights", "fdm_weights", "verify_weights", "proposer_weights")
"""In a config, digests of models that are asked and of which no checkpoint holds the weights."""
_ABSENT = object()


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], directory: Path | None = None
) -> dict[str, tuple[Any, Any]]:
    """Arguments that differ, by name, with both values; None for one that is not there.

    Paths that mean one file are equal, however they are written.

    Args:
        before: the config that a run began with, JSON values.
        after: the config now.
        directory: the folder that relative paths began from; None if nobody knows.
    """
    old, new = dict(_flat(before)), dict(_flat(after))
    places = (directory or Path.cwd(), Path.cwd())
    changed = [key for key in {**old, **new} if not _same(old.get(key, _ABSENT), new.get(key, _ABSENT), places)]
    unknown = {FINGERPRINT, *ASKED} - old.keys()  # nobody wrote them down yet,
    unknown |= {*ASKED} - new.keys()  # or nobody asks for them any more
    changed = [key for key in changed if key not in unknown]
    if FINGERPRINT in old and old[FINGERPRINT] == new.get(FINGERPRINT):
        changed = [key for key in changed if key != "base"]
    return {key: (old.get(key), new.get(key)) for key in changed if key not in NEVER_COMPARED}


def in_words(name: str, values: tuple[Any, Any]) -> str:
    """A difference as a user reads it."""
    before, now = (_short(value) for value in values)
    return f"{name} (begun with {before}, now {now})"


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, those of the sections among them."""
    for key, value in config.items():
        if key in SECTIONS and isinstance(value, Mapping):
            yield from value.items()
        else:
            yield key, value


def _same(first: Any, second: Any, places: tuple[Path, Path]) -> bool:
    if first == second:
        return True
    if first is _ABSENT:  # an argument that there was not yet when the run began, and that is off now
        return second in (None, False, [], {})
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(_same(a, b, places) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key], places) for key in first)
    if isinstance(first, str) and isinstance(second, str):
        return _resolved(first, places[0]) == _resolved(second, places[1])
    return False


def _resolved(text: str, directory: Path) -> str:
    try:
        return str((directory / Path(text).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError):  # it is no path: too long, a circle of links, a zero byte
        return text


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
