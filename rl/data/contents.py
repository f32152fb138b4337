"""What tells a data set from another under the same name, without reading all of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from rl.data.formats.function import file_of, is_function
from rl.data.mixture import ingredients_of, is_mixture
from rl.paths import expanded

LARGE = 1 << 28
"""Bytes above which of a file only its size and its ends count."""
SMALL = 1 << 20
"""Bytes up to which a file in a folder counts by what it holds, and not by its size alone."""


class Hash(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None: ...


def add_contents(given: str | Path, to: Hash) -> None:
    """Add what a data set holds to a hash: the bytes of a file, the names, sizes and small files of a folder.

    Pictures beside a list are not looked at. Of a Hub id the name counts, of a function its file, and of a mixture
    all that it names.
    """
    path = expanded(given)
    if not path.exists():
        file = file_of(str(given)) if is_function(str(given)) else None
        to.update(file.read_bytes() if file is not None and file.is_file() else str(given).encode())
    elif path.is_dir():
        _folder(path, to)
    else:
        _file(path, to)
        if is_mixture(path):
            for one in ingredients_of(path)[1]:
                add_contents(one.given, to)


def _file(path: Path, to: Hash) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= LARGE:
            to.update(file.read())
            return
        to.update(str(size).encode() + file.read(SMALL))
        file.seek(-SMALL, os.SEEK_END)
        to.update(file.read())


def _folder(folder: Path, to: Hash) -> None:
    """A folder and those directly in it."""
    inside = sorted(folder.iterdir())
    for one in [*inside, *(below for top in inside if top.is_dir() for below in sorted(top.iterdir()))]:
        if one.is_file():
            size = one.stat().st_size
            to.update(f"{one.relative_to(folder).as_posix()} {size}\n".encode())
            if size <= SMALL and one.suffix in (".json", ".jsonl", ".csv"):
                to.update(one.read_bytes())
