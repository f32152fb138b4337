"""Files that are whole or absent, whatever kills a run or fills its disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rl.errors import RewindError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(file: Path, text: str) -> None:
    """Write UTF-8 text beside a file and move it into place: a reader finds the old text or the new one.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    beside = partial(file)
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def partial(file: Path) -> Path:
    """Where `write_whole` writes before it moves."""
    return file.with_name(f"{file.name}.partial")


@contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """A folder beside `folder` to write into; its files then take the places of those of the same names in `folder`.

    Files are moved by name, and `last` after all others, so that where it is, they are. If anything goes wrong before,
    what was there stays.
    """
    beside = partial(folder)
    shutil.rmtree(beside, ignore_errors=True)  # a killed run's
    try:
        beside.mkdir(parents=True)
        yield beside
        folder.mkdir(exist_ok=True)
        for file in sorted(beside.iterdir(), key=lambda p: (p.name == last, p.name)):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def json_lines(file: Path) -> list[Any]:
    """What the lines of a file hold, [] if it is not there; a last line that a kill has torn is cut off the file.

    Raises:
        RewindError: a line before the last cannot be read.
    """
    if not file.is_file():
        return []
    found, whole = [], 0
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise RewindError(
                    f"{file}, line {number} cannot be read: repair it, or begin with --overwrite"
                ) from error
            break
        whole += len(line)
    if whole < file.stat().st_size:
        os.truncate(file, whole)
    return found


def full_disk(error: BaseException | None) -> str | None:
    """The system's words if an error, or one behind it, says that a disk or a quota is full or a file too large."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # safetensors and others written in Rust pass the number on in their text alone.
        code = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) and error.errno else int(code[1]) if code else None
        if number in _FULL:
            name = error.filename if isinstance(error, OSError) else None
            return f"{os.strerror(number)}: {name}" if name else os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewindError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise RewindError(f"{path} must hold a JSON object")
    return found
