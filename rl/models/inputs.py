"""What the two roles are given: pictures as token ids, sentences, and how many belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rl.actions import action_text
from rl.codes import Codes, Grid
from rl.errors import RewindError
from rl.models.unified import UnifiedVLM
from rl.pictures import PictureLike, Views, views_of
from rl.stored import StoredPicture
from rl.triplets import Candidate


def action_texts(action: Any) -> Any:
    """One action or several, vectors of numbers as the texts that stand for them."""
    one = action_text(action)
    return [action_text(each) for each in one] if isinstance(one, list | tuple) else one


def check_actions(actions: Sequence[str]) -> None:
    """Raise a `RewindError` unless every action is a sentence."""
    for action in actions:
        if not isinstance(action, str):
            raise RewindError(f"an action is a sentence (str), not a {type(action).__name__}")
        if not action.strip():
            raise RewindError("the action is empty: say in words what happens between the two pictures")


def as_list(name: str, given: Any) -> Any:
    """What was given for several, as it is.

    Raises:
        RewindError: it is one picture or nothing at all.
    """
    one = Candidate | Image.Image | StoredPicture | Views | str | Path
    one_picture = isinstance(given, one) or (isinstance(given, np.ndarray) and given.ndim == 3)
    if one_picture or not hasattr(given, "__len__"):
        raise RewindError(f"{name} must be a list, not one {type(given).__name__}")
    return given


def check_views(pictures: Sequence[PictureLike | Candidate], like: Sequence[Sequence[int]]) -> None:
    """Raise a `RewindError` unless every picture is of as many cameras as the one with these ids."""
    for picture, ids in zip(pictures, like, strict=False):
        found = _views(picture.grid) if isinstance(picture, Candidate) else views_of(picture)
        wanted = _views(getattr(ids, "grid", None))
        if found != wanted:
            raise RewindError(
                f"a picture of {found} views is held against one of {wanted}: give both from the same cameras "
                "(rl.pictures.Views)"
            )


def _views(grid: Grid | None) -> int:
    return 1 if grid is None else grid.views


def token_ids(
    vlm: UnifiedVLM,
    pictures: Sequence[PictureLike | Candidate],
    like: Sequence[Sequence[int]] | None = None,
) -> list[Codes]:
    """Image-token ids of pictures; a `Candidate` of the same backbone has its own, another backbone's is re-encoded.

    `like`: ids of the pictures whose sizes they get where pictures keep their own, one each.

    Raises:
        RewindError: a picture of other cameras than the one that it is to be like.
    """
    if like is not None:
        check_views(pictures, like)
    fresh: dict[tuple[int, Grid | None], tuple[Any, Sequence[int] | None]] = {}
    keys: list[tuple[int, Grid | None]] = []
    for number, picture in enumerate(pictures):
        size = None if like is None else like[number]
        # a picture that stands there many times, such as the source of a group, is encoded once
        keys.append((id(picture), None if size is None else vlm.layout.grammar_of(size).grid))
        if not (isinstance(picture, Candidate) and picture.backbone is vlm):
            fresh[keys[-1]] = picture.picture if isinstance(picture, Candidate) else picture, size
    encoded: dict[tuple[int, Grid | None], Codes] = {}
    if fresh:
        images = [image for image, _ in fresh.values()]
        sizes = None if like is None else [size for _, size in fresh.values() if size is not None]
        encoded = dict(zip(fresh, vlm.codes(images, sizes), strict=True))
    return [encoded.get(key) or p.codes for key, p in zip(keys, pictures, strict=True)]  # type: ignore[union-attr]


def rows_of(
    vlm: UnifiedVLM,
    source: PictureLike | Sequence[PictureLike],
    targets: Sequence[PictureLike | Candidate],
    action: str | Sequence[str],
) -> tuple[list[Codes], list[Codes], list[str]]:
    """Source ids, target ids and actions of equal length from one source (or action) for all targets or one each."""
    many = isinstance(source, list | tuple)
    sources: Any = source if many else [source]
    targets = as_list("targets", targets)
    action = action_texts(action)
    actions = [action] * len(targets) if isinstance(action, str) else list(as_list("actions", action))
    count = len(sources) if many else len(targets)
    if not count == len(targets) == len(actions):
        raise RewindError(f"{count} sources, {len(targets)} targets and {len(actions)} actions do not fit together")
    check_actions(actions)
    if not len(targets):
        return [], [], []
    source_ids = token_ids(vlm, sources) * (1 if many else count)
    return source_ids, token_ids(vlm, targets, source_ids), actions
