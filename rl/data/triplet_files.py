"""Triplets on disk in AURORA's JSON format: a list of {instruction, input, output, ...} with relative image paths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rl.data.columns import plain_columns
from rl.errors import RewindError
from rl.pictures import load_image
from rl.running.files import write_whole
from rl.triplets import Triplet

KNOWN = ("instruction", "input", "output", "task", "class", "score", "source")
"""Keys of an entry that have a meaning here; the others are further columns (`Triplet.more`)."""


def read_triplets(path: Path, limit: int | None = None, *, named: bool = True) -> list[Triplet]:
    """Read a JSON list, or its first `limit` entries; image paths are relative to the file and stay in its folder.

    With `named=False` the list holds pairs: `instruction` may be absent, and the action is then the empty text.
    `output` may be absent or null (an unknown target); `task`, `class`, `score` and `source` are optional. What else an
    entry holds is kept as it stands, for rewards that ask for it by name.

    Raises:
        RewindError: naming the entry that is wrong and what is wrong with it.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RewindError(f"cannot read the triplets {path}: {error.strerror}") from error
    except ValueError as error:
        raise RewindError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise RewindError(f"{path} must be a JSON list with at least one triplet")
    return [_triplet(entry, number, path, named) for number, entry in enumerate(entries[:limit])]


def _triplet(entry: Any, number: int, path: Path, named: bool) -> Triplet:
    where = f"{path}, triplet {number}"
    if not isinstance(entry, dict) or "input" not in entry:
        raise RewindError(f"{where}: needs at least 'instruction' (words) and 'input' (an image path)")
    action = entry.get("instruction", None if named else "")
    if not isinstance(action, str):
        raise RewindError(f"{where}: needs at least 'instruction' (words) and 'input' (an image path)")
    if named and not action.strip():
        raise RewindError(f"{where}: the instruction is empty")
    root = path.parent.resolve()

    def image(key: str) -> Image.Image | None:
        name = entry.get(key)
        if name is None:
            return None
        file = (root / str(name)).resolve()
        if not file.is_relative_to(root):
            raise RewindError(f"{where}: '{name}' lies outside the folder of the file; keep the images below it")
        return load_image(file)

    source = image("input")
    if source is None:
        raise RewindError(f"{where}: 'input' is null, but every triplet needs a source picture")
    score = entry.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise RewindError(f"{where}: 'score' must be a number, not {score!r}")
    return Triplet(
        source=source,
        action=action.strip(),
        target=image("output"),
        task=entry.get("task"),
        label=entry.get("class"),
        score=float(score) if score is not None else None,
        provenance=entry.get("source"),
        more=_further(entry),
    )


def _further(entry: dict[str, Any]) -> dict[str, Any]:
    """The columns of an entry that have no meaning here."""
    return {key: value for key, value in entry.items() if key not in KNOWN}


def write_triplets(triplets: Sequence[Triplet], folder: Path, name: str = "triplets.json") -> Path:
    """Write triplets as PNG pictures under `folder/images` and a JSON list beside; returns the list's path."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    width, entries = len(str(len(triplets))), []
    for number, triplet in enumerate(triplets):
        entry: dict[str, Any] = {"instruction": triplet.action} if triplet.action else {}
        for key, picture in (("input", triplet.source), ("output", triplet.target)):
            if picture is not None:
                file = f"images/{number:0{width}d}-{key}.png"
                image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
                image.save(folder / file)
                entry[key] = file
        optional = {
            "task": triplet.task,
            "class": triplet.label,
            "score": triplet.score,
            "source": triplet.provenance,
        }
        entry |= {key: value for key, value in optional.items() if value is not None}
        entries.append({**entry, **_further(plain_columns(triplet.more))})
    path = folder / name
    write_whole(path, json.dumps(entries, indent=1) + "\n")
    return path
