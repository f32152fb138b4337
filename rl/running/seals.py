"""Digests that say whether files are as they were written: a seal is a JSON file beside them, by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from rl.running.files import write_whole


def seal(file: Path, sealed: Iterable[Path]) -> None:
    """Write the digests of files that lie beside a seal, or in folders there, into it, in one move."""
    write_whole(file, json.dumps(_digests(file.parent, sealed), indent=1) + "\n")


def damage(file: Path) -> str | None:
    """What is wrong with sealed files, in words; None if they are as they were sealed.

    Every one is read, through a small buffer.
    """
    try:
        sealed: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        found = _digests(file.parent, (p for name in sealed if (p := file.parent / name).is_file()))
    except (OSError, ValueError, TypeError):
        return "it was not finished"
    wrong = sorted(name for name, digest in sealed.items() if found.get(name) != digest)
    return f"{wrong[0]} is missing or changed" if wrong else None


def _digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
