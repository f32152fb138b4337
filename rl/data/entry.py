"""What one entry of a data set says: its words, where its pictures are, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rl.actions import action_text, is_vector
from rl.data.entries import NoEntry
from rl.data.places import located
from rl.data.video.video_frames import VideoFrame
from rl.pictures import EncodedPicture, Picture, PictureFile, Views
from rl.stored import StoredPicture
from rl.triplets import Triplet

KNOWN = ("instruction", "input", "output", "task", "class", "score", "source")
"""Keys of an entry that have a meaning here; the others are further columns (`Triplet.more`)."""


class EntryError(Exception):
    """What is wrong with an entry: its key, a reason to count by, and the rest of a sentence."""

    def __init__(self, key: str | None, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class Entry:
    """A triplet whose pictures nobody has looked at."""

    source: tuple[Any, ...]
    target: tuple[Any, ...]
    words: dict[str, Any]

    def check_views(self) -> None:
        """See that the target is seen by as many cameras as the source.

        Raises:
            EntryError: it is not.
        """
        if self.target and len(self.source) != len(self.target):
            told = f"'input' has {len(self.source)} views and 'output' {len(self.target)}: a scene keeps its cameras"
            raise EntryError("output", "other views", told)

    def triplet(self) -> Triplet:
        """The triplet."""
        source = _one(self.source)
        assert source is not None
        return Triplet(source, target=_one(self.target), **self.words)


def entry_of(entry: Any, roots: Sequence[Path], named: bool, with_targets: bool) -> Entry:
    """What an entry says, checked, its pictures located.

    Raises:
        EntryError: it cannot be used.
    """
    if isinstance(entry, NoEntry):
        raise EntryError(None, entry.reason, entry.told)
    if not isinstance(entry, Mapping):
        entry = {}
    if "input" not in entry:
        there = f"; it has {', '.join(map(repr, [*entry][:12]))} (--columns input=THEIRS)" if entry else ""
        sentence = f"needs at least 'instruction' (words) and 'input' (an image path){there}"
        raise EntryError("input", "no 'input'", sentence)
    words_key = "prompt" if "prompt" in entry and "instruction" not in entry else "instruction"
    words = entry.get(words_key)
    if words is None and not named:
        words = ""
    if not words and isinstance(entry.get("action"), str):
        words_key, words = "action", entry["action"]
    words = words[0] if isinstance(words, list) and words and not is_vector(words) else words
    if _no_vector(entry.get("action")):
        sentence = "'action' must be a list of finite numbers (of several steps, one behind the other)"
        raise EntryError("action", "wrong 'action'", sentence)
    vector = next((given for given in (entry.get("action"), words) if is_vector(given)), None)
    action = words if vector is None else action_text(vector)
    if not isinstance(action, str):
        sentence = "needs at least 'instruction' (words; or 'action', numbers) and 'input' (an image path)"
        raise EntryError("instruction", "no 'instruction'", sentence)
    if named and not action.strip():
        raise EntryError("instruction", "no 'instruction'", "the instruction is empty")
    if entry["input"] is None:
        raise EntryError("input", "no 'input'", "'input' is null, but every triplet needs a source picture")
    if with_targets and entry.get("output") is None:
        raise EntryError("output", "no 'output'", "has no target picture ('output'), which is needed here")
    score = entry.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise EntryError("score", "wrong 'score'", f"'score' must be a number, not {score!r}")
    source, target = (_pictures(entry.get(key), key, roots) for key in ("input", "output"))
    words = {
        "action": action.strip(),
        "task": entry.get("task", words if vector is not None and isinstance(words, str) and words else None),
        "label": entry.get("class"),
        "score": float(score) if score is not None else None,
        "provenance": entry.get("source"),
        "more": {k: v for k, v in entry.items() if k not in (*KNOWN, words_key) and v is not vector},
    }
    return Entry(source, target, words)


def _no_vector(action: Any) -> bool:
    """Whether an action is meant to be a vector and is none; a list of words is another column."""
    numbers = isinstance(action, list) and any(isinstance(x, int | float | list) for x in action)
    return numbers and not is_vector(action)


def _pictures(given: Any, key: str, roots: Sequence[Path]) -> tuple[Any, ...]:
    """The picture that an entry names, or each of a list; empty without one."""
    names = given if isinstance(given, list | tuple) and given else [given]
    if given is names and any(name is None for name in names):
        raise EntryError(key, "no picture", f"'{key}': a picture of the list is null: a scene keeps its cameras")
    found = [_picture(name, key, roots) for name in names]
    return tuple(picture for picture in found if picture is not None)


def _picture(given: Any, key: str, roots: Sequence[Path]) -> Picture | None:
    """What an entry gives for a picture: a path, a frame of a video, the bytes of a file, or a picture itself.

    Raises:
        EntryError: something else, or a path that leads out of `roots`.
    """
    if given is None or isinstance(given, StoredPicture | Image.Image | np.ndarray):
        return given
    if isinstance(given, bytes):
        return EncodedPicture(given)
    if isinstance(given, Mapping) and isinstance(given.get("bytes"), bytes):
        return EncodedPicture(given["bytes"], str(given.get("path") or "a picture"))
    if isinstance(given, Mapping) and "video" in given:
        return VideoFrame(_path(given["video"], key, roots), _second(given.get("at", 0.0), key))
    return PictureFile(_path(given.get("path") if isinstance(given, Mapping) else given, key, roots))


def _second(at: Any, key: str) -> float | None:
    """The second of a frame; None is the last one.

    Raises:
        EntryError: neither a second nor 'last'.
    """
    if at in ("first", "last"):
        return 0.0 if at == "first" else None
    if isinstance(at, bool) or not isinstance(at, int | float) or not (math.isfinite(at) and at >= 0):
        raise EntryError(
            key, "no second", f"'{key}': 'at' must be seconds from 0 on, \"first\" or \"last\", not {at!r}"
        )
    return float(at)


def _path(name: Any, key: str, roots: Sequence[Path]) -> Path:
    if not isinstance(name, str | Path):
        raise EntryError(key, "not a path", f"'{key}' must be an image path, not a {type(name).__name__}")
    path = located(str(name), roots)
    if path is None:
        sentence = f"'{key}': '{name}' lies outside the folder of the file: move it there, or give --image_root"
        raise EntryError(key, "outside the folder", sentence)
    return path


def _one(pictures: tuple[Any, ...]) -> Any:
    return None if not pictures else pictures[0] if len(pictures) == 1 else Views(pictures)
