"""A reader of the user's: a function, named by where it stands, that gives the entries itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.data.entries import NoEntry
from rl.data.lazy import Lazy
from rl.errors import RewindError
from rl.user_code import load_file, load_module
from rl.words import did_you_mean


def is_function(name: str) -> bool:
    """Whether a name is `file.py:function` or `package.module:function`."""
    where, colon, attribute = name.rpartition(":")
    dotted = all(part.isidentifier() for part in where.split("."))
    return bool(colon) and attribute.isidentifier() and (where.endswith(".py") or dotted)


def function_entries(name: str) -> tuple[Sequence[Any], Path]:
    """What the function returns when called without arguments, and its file's folder, which its paths start from.

    Entries are mappings with AURORA's keys; a picture may be a path, a `{"video": path, "at": second}`, the bytes of a
    file, a PIL image or an array. A sequence is asked for an entry at a time; anything else is gone through once.

    Raises:
        RewindError: there is no such function, it raises, or returns no entries.
    """
    function, folder = _function(name)
    try:
        found = function()
        rows = found if hasattr(found, "__len__") and hasattr(found, "__getitem__") else list(found)
    except Exception as error:  # the user's function may raise anything
        raise RewindError(f"--triplets {name}: it raised {type(error).__name__}: {error}") from error
    if isinstance(rows, str | dict) or not len(rows):
        raise RewindError(f"--triplets {name}: it must return entries, a list of mappings with at least one")
    return _Rows(rows), folder


class _Rows(Lazy[Any]):
    """The user's sequence; an entry at which it raises is a `NoEntry`."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, number: int) -> Any:
        try:
            return self._rows[number]
        except Exception as error:  # and so may its sequence
            return NoEntry("reader raised", f"the reader raised {type(error).__name__}: {error}")


def file_of(name: str) -> Path | None:
    """The file in which the function stands, None while its module is not imported."""
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where).expanduser()
    found = getattr(sys.modules.get(where), "__file__", None)
    return Path(found) if found else None


def _function(name: str) -> tuple[Callable[[], Any], Path]:
    where, _, attribute = name.rpartition(":")
    file = Path(where).expanduser()
    if where.endswith(".py") and not file.is_file():
        raise RewindError(f"there is no file {where} with the function '{attribute}' to read triplets by")
    try:
        module = load_file(file) if where.endswith(".py") else load_module(where)
    except Exception as error:  # so may its file
        raise RewindError(f"--triplets {name} does not import: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = did_you_mean(attribute, there)
        raise RewindError(f"{where} has no function '{attribute}'{near}: it has {', '.join(there[:20]) or 'none'}")
    return found, Path(getattr(module, "__file__", None) or Path.cwd()).resolve().parent
