"""Triplets on disk in AURORA's JSON format: a list of {instruction, input, output, ...} with relative image paths."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rl.actions import action_text, is_vector, vector_of
from rl.data.columns import plain_columns
from rl.data.entries import NoEntry, read_entries
from rl.data.left_out import LeftOut, check
from rl.data.linked import link_pictures
from rl.errors import RewindError
from rl.paths import as_written, expanded, is_file
from rl.pictures import PictureFile, Views, to_image, views_of
from rl.running.files import write_whole
from rl.triplets import Triplet

ANCESTORS, TRIED = 3, 20
"""Folders above the file's that paths may start from, and entries by which that is found out."""
AT_ONCE = 4096
"""Pictures that are looked at between two progress steps."""
KNOWN = ("instruction", "input", "output", "task", "class", "score", "source")
"""Keys of an entry that have a meaning here; the others are further columns (`Triplet.more`)."""
_logger = logging.getLogger("rl")


class _EntryError(Exception):
    """What is wrong with an entry: its key, a reason to count by, and the rest of a sentence."""

    def __init__(self, key: str | None, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class _Entry:
    """A triplet whose pictures have not been looked at."""

    source: tuple[Path, ...]
    target: tuple[Path, ...]
    words: dict[str, Any]


def read_triplets(
    path: str | Path,
    limit: int | None = None,
    *,
    named: bool = True,
    with_targets: bool = False,
    image_root: str | Path | None = None,
    strict: bool = False,
    left_out: list[LeftOut] | None = None,
) -> list[Triplet]:
    """Read triplets from a JSON list, from the list under "data", or from JSON lines; or the first `limit` entries.

    An entry has `instruction` (or `prompt`; of a list of them, the first) or `action`, a list of numbers; `input`, and
    optionally `output`, `task`, `class`, `score` and `source` (provenance); what else it holds is kept as it stands
    (`Triplet.more`), for rewards that ask for it by name. Words beside a vector are its task. A list of pictures is
    one scene through several cameras (`rl.pictures.Views`). Pictures stay in their
    files (`rl.pictures.PictureFile`); each is decoded once, at a reduced size where its format allows, to see that it
    is whole.

    Image paths are relative to the file's folder or, if the first entries' pictures are not there, to one of the three
    folders above it in which one of them is, which is said; or to `image_root`. A path may lead through links; as it is
    written it must end in the folder that it is relative to, in the file's folder or in `image_root`.

    An entry that cannot be used is left out, with a warning that counts them by reason.

    Args:
        path: the file.
        limit: of the entries, those that are left out included; all if None.
        named: if not, the file holds pairs: `instruction` may be absent, and the action is then the empty text.
        with_targets: leave out entries without `output`, whose target would be unknown (None).
        image_root: the folder that image paths start from.
        strict: refuse a file with an entry that would be left out.
        left_out: a list to which those are added.

    Raises:
        RewindError: the file cannot be read, more than half of its entries would be left out, or any with `strict`; it
            names the first entry and what is wrong with it.
    """
    file = expanded(path)
    if limit is not None and limit < 1:
        raise RewindError(f"the limit of triplets must be at least 1, not {limit}")
    raw = read_entries(file)[:limit]
    triplets, faults = _triplets(raw, _roots(file, image_root, raw), named, with_targets)
    left = [_left_out(file, number, faults[number]) for number in sorted(faults)]
    check(file, len(raw), left, strict)
    if left_out is not None:
        left_out += left
    return triplets


def _triplets(
    raw: Sequence[Any], roots: Sequence[Path], named: bool, with_targets: bool
) -> tuple[list[Triplet], dict[int, _EntryError]]:
    """The triplets of the entries that can be used, and what is wrong with the others, by number."""
    entries: dict[int, _Entry] = {}
    faults: dict[int, _EntryError] = {}
    for number, entry in enumerate(raw):
        try:
            entries[number] = _entry(entry, roots, named, with_targets)
        except _EntryError as fault:
            faults[number] = fault
    looked = _look(path for entry in entries.values() for path in (*entry.source, *entry.target))
    triplets = []
    for number, found in entries.items():
        try:
            source, target = _picture(found.source, "input", looked), _picture(found.target, "output", looked)
        except _EntryError as fault:
            faults[number] = fault
            continue
        assert source is not None
        if target is not None and views_of(source) != views_of(target):
            told = f"'input' has {views_of(source)} views and 'output' {views_of(target)}: a scene keeps its cameras"
            faults[number] = _EntryError("output", "other views", told)
            continue
        triplets.append(Triplet(source, target=target, **found.words))
    return triplets, faults


def _entry(entry: Any, roots: Sequence[Path], named: bool, with_targets: bool) -> _Entry:
    """What an entry says, checked, its pictures located.

    Raises:
        _EntryError: it cannot be used.
    """
    if isinstance(entry, NoEntry):
        raise _EntryError(None, "not JSON", f"line {entry.line} is no JSON ({entry.error})")
    if not isinstance(entry, dict) or "input" not in entry:
        raise _EntryError("input", "no 'input'", "needs at least 'instruction' (words) and 'input' (an image path)")
    words_key = "prompt" if "prompt" in entry and "instruction" not in entry else "instruction"
    words = entry.get(words_key, None if named else "")
    words = words[0] if isinstance(words, list) and words and not is_vector(words) else words
    if _no_vector(entry.get("action")):
        sentence = "'action' must be a list of finite numbers (of several steps, one behind the other)"
        raise _EntryError("action", "wrong 'action'", sentence)
    vector = next((given for given in (entry.get("action"), words) if is_vector(given)), None)
    action = words if vector is None else action_text(vector)
    if not isinstance(action, str):
        sentence = "needs at least 'instruction' (words; or 'action', numbers) and 'input' (an image path)"
        raise _EntryError("instruction", "no 'instruction'", sentence)
    if named and not action.strip():
        raise _EntryError("instruction", "no 'instruction'", "the instruction is empty")
    if entry["input"] is None:
        raise _EntryError("input", "no 'input'", "'input' is null, but every triplet needs a source picture")
    if with_targets and entry.get("output") is None:
        raise _EntryError("output", "no 'output'", "has no target picture ('output'), which is needed here")
    score = entry.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise _EntryError("score", "wrong 'score'", f"'score' must be a number, not {score!r}")
    source, target = (_all_located(entry.get(key), key, roots) for key in ("input", "output"))
    words = {
        "action": action.strip(),
        "task": entry.get("task", words if vector is not None and isinstance(words, str) and words else None),
        "label": entry.get("class"),
        "score": float(score) if score is not None else None,
        "provenance": entry.get("source"),
        "more": {k: v for k, v in entry.items() if k not in (*KNOWN, words_key) and v is not vector},
    }
    return _Entry(source, target, words)


def _no_vector(action: Any) -> bool:
    """Whether an action is meant to be a vector and is none; a list of words is another column."""
    numbers = isinstance(action, list) and any(isinstance(x, int | float | list) for x in action)
    return numbers and not is_vector(action)


def _roots(file: Path, image_root: str | Path | None, raw: Sequence[Any]) -> list[Path]:
    """The folders that image paths may start from, in the order in which they are tried."""
    folder = as_written(file).parent
    if image_root is not None:
        root = as_written(image_root)
        if not root.is_dir():
            raise RewindError(f"there is no folder {image_root} for images to be in: check --image_root")
        return [root, folder]
    first: list[Any] = [one.get("input") for one in raw[:TRIED] if isinstance(one, dict)]
    first = [one[0] if isinstance(one, list) and one else one for one in first]
    named = [one for one in first if isinstance(one, str)]
    names = [name for name in named if not expanded(name).is_absolute()]
    for root in (folder, *folder.parents[:ANCESTORS]):
        if any((path := _below(name, root, [root])) is not None and is_file(path) for name in names):
            if root == folder:
                break
            _logger.warning("%s: image paths start from %s, where they are found (--image_root sets it)", file, root)
            return [root, folder]
    return [folder]


def _below(name: str, root: Path, roots: Sequence[Path]) -> Path | None:
    """The path that a name means from `root`, links not followed, if it ends in one of `roots`."""
    path = as_written(root / expanded(name))
    # The second is for a full path into a folder that was itself given by a link to it.
    inside = any(path.is_relative_to(one) or path.is_relative_to(one.resolve()) for one in roots)
    return path if inside else None


def _all_located(given: Any, key: str, roots: Sequence[Path]) -> tuple[Path, ...]:
    """Where the picture of an entry should be, or of a list of names each; empty without one."""
    names = given if isinstance(given, list) and given else [given]
    found = tuple(_located(name, key, roots) for name in names)
    return tuple(path for path in found if path is not None)


def _located(name: Any, key: str, roots: Sequence[Path]) -> Path | None:
    """Where the picture of an entry should be, None without a name.

    Raises:
        _EntryError: something that is no path, or one that leads out of `roots`.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise _EntryError(key, "not a path", f"'{key}' must be an image path, not a {type(name).__name__}")
    inside = [path for root in roots if (path := _below(name, root, roots)) is not None]
    if not inside:
        sentence = f"'{key}': '{name}' lies outside the folder of the file: move it there, or give --image_root"
        raise _EntryError(key, "outside the folder", sentence)
    return next((path for path in inside if is_file(path)), inside[0]) if len(inside) > 1 else inside[0]


def _look(paths: Iterable[Path]) -> dict[Path, PictureFile | RewindError]:
    """Each file once, as a picture or as what is wrong with it; PIL decodes outside Python's lock, so threads help."""

    def one(path: Path) -> PictureFile | RewindError:
        try:
            return PictureFile.of(path)
        except RewindError as error:
            return error

    distinct = list(dict.fromkeys(paths))
    found: dict[Path, PictureFile | RewindError] = {}
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(distinct), desc="pictures", disable=len(distinct) <= AT_ONCE) as bar,
    ):
        for start in range(0, len(distinct), AT_ONCE):
            part = distinct[start : start + AT_ONCE]
            found |= dict(zip(part, pool.map(one, part), strict=True))
            bar.update(len(part))
    return found


def _picture(
    paths: Sequence[Path], key: str, looked: dict[Path, PictureFile | RewindError]
) -> PictureFile | Views | None:
    """A picture of its own for every entry, as if each had been read: what groups by identity keeps entries apart.

    Raises:
        _EntryError: it is missing or not whole.
    """
    pictures = []
    for path in paths:
        found = looked[path]
        if isinstance(found, RewindError):
            raise _EntryError(key, "unreadable picture" if is_file(path) else "missing picture", f"'{key}': {found}")
        pictures.append(PictureFile(found.path, found.size))
    return None if not pictures else pictures[0] if len(pictures) == 1 else Views(tuple(pictures))


def _left_out(file: Path, number: int, fault: _EntryError) -> LeftOut:
    return LeftOut(str(file), number, fault.key, fault.reason, f"{file}, triplet {number}: {fault}")


def write_triplets(
    triplets: Sequence[Triplet], folder: Path, name: str = "triplets.json", *, link: bool = False
) -> Path:
    """Write triplets as PNG pictures under `folder/images` and a JSON list beside; returns the list's path.

    With `link`, pictures that lie in files are referred to in place of copies (`rl.data.linked`).
    """
    linked = link_pictures(triplets, folder) if link else {}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    width, entries = len(str(len(triplets))), []
    for number, triplet in enumerate(triplets):
        entry: dict[str, Any] = {"instruction": triplet.action} if triplet.action else {}
        if (vector := vector_of(triplet.action)) is not None:
            entry = {"action": list(vector)}
        for key, picture in (("input", triplet.source), ("output", triplet.target)):
            if picture is not None:
                views = picture.pictures if isinstance(picture, Views) else (picture,)
                names = [f"images/{number:0{width}d}-{key}{f'-{n}' if n else ''}.png" for n in range(len(views))]
                for place, view in enumerate(views):
                    if isinstance(view, PictureFile) and view.path in linked:
                        names[place] = linked[view.path]
                    else:
                        to_image(view).save(folder / names[place])
                entry[key] = names if len(names) > 1 else names[0]
        optional = {
            "task": triplet.task,
            "class": triplet.label,
            "score": triplet.score,
            "source": triplet.provenance,
        }
        entry |= {key: value for key, value in optional.items() if value is not None}
        entries.append({**entry, **{k: v for k, v in plain_columns(triplet.more).items() if k not in KNOWN}})
    path = folder / name
    write_whole(path, json.dumps(entries, indent=1) + "\n")
    return path
