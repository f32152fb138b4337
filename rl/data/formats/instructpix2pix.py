"""Folders as InstructPix2Pix makes them: a folder a prompt, with prompt.json and pairs SEED_0.jpg, SEED_1.jpg.

A `seeds.json`, [[FOLDER, [SEED, ...]], ...], says which pairs there are; without one they are looked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl.data.entries import read_text
from rl.data.entry import KNOWN
from rl.errors import RewindError

PROMPT, SEEDS = "prompt.json", "seeds.json"
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def is_instructpix2pix(folder: Path) -> bool:
    """Whether a folder looks like one, seen in itself and the first folders two levels below."""
    if (folder / SEEDS).is_file():
        return True
    below = [folder, *_folders(folder)[:3]]
    return any((one / PROMPT).is_file() for top in below for one in (top, *_folders(top)[:3]))


def instructpix2pix_entries(folder: Path) -> Iterator[dict[str, Any]]:
    """An entry a pair, in the order of the names, with what else `prompt.json` says; a picture may not be there.

    Raises:
        RewindError: a `seeds.json` of another form.
    """
    for one, seeds in _listed(folder) if (folder / SEEDS).is_file() else _walked(folder):
        words, rest = _words(one / PROMPT)
        name = one.relative_to(folder).as_posix()
        files = {file for file in os.listdir(one) if file.endswith(_ENDINGS)} if one.is_dir() else set()  # noqa: PTH208
        for seed in seeds if seeds is not None else sorted({f.rpartition("_0.")[0] for f in files if "_0." in f}):
            pair = [next((f"{seed}_{n}{e}" for e in _ENDINGS if f"{seed}_{n}{e}" in files), None) for n in (0, 1)]
            paths = [None if file is None else f"{name}/{file}" for file in pair]
            found: dict[str, Any] = {"instruction": words, "input": paths[0] or f"{name}/{seed}_0.jpg"}
            yield rest | found | {"output": paths[1] or f"{name}/{seed}_1.jpg", "source": f"{name}/{seed}"}


def _listed(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    try:
        listed = json.loads(read_text(folder / SEEDS))
    except ValueError:
        listed = None
    for item in listed if isinstance(listed, list) else [None]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[1], list)):
            raise RewindError(f"{folder / SEEDS} must be a list of [folder, [seeds]]: make it anew, or remove it")
        yield folder / str(item[0]), [str(seed) for seed in item[1]]


def _walked(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    for top, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if PROMPT in files:
            yield Path(top), None


def _words(file: Path) -> tuple[Any, dict[str, Any]]:
    """The words of the edit, None where they cannot be read, and what else stands there under a name of its own."""
    try:
        found = json.loads(read_text(file))
    except (RewindError, ValueError):
        found = None
    if not isinstance(found, dict):
        return None, {}
    return found.get("edit"), {key: value for key, value in found.items() if key not in (*KNOWN, "edit", "prompt")}


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir())
    except OSError:
        return []
