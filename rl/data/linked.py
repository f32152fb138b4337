"""Pictures that a file of triplets refers to where they are, in place of copies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rl.pictures import PictureFile, Views
from rl.triplets import Triplet

LINK = "pictures"


def link_pictures(triplets: Iterable[Triplet], folder: Path) -> dict[Path, str]:
    """Make `folder/pictures` a link to the folder in which all picture files of the triplets lie somewhere.

    A path through it stays in `folder` as it is written, as readers want it. The link is relative, so that folders
    which are moved together stay together.

    Returns:
        The name of each file, from `folder`; pictures without a file have none.
    """
    pictures = [one for triplet in triplets for one in (triplet.source, triplet.target)]
    views = [view for one in pictures for view in (one.pictures if isinstance(one, Views) else (one,))]
    files = list(dict.fromkeys(view.path for view in views if isinstance(view, PictureFile)))
    if not files:
        return {}
    root = os.path.commonpath([file.parent for file in files])
    folder.mkdir(parents=True, exist_ok=True)
    link, beside = folder / LINK, folder / f"{LINK}.partial"
    beside.unlink(missing_ok=True)
    beside.symlink_to(os.path.relpath(root, folder.resolve()), target_is_directory=True)
    beside.replace(link)
    return {file: f"{LINK}/{file.relative_to(root).as_posix()}" for file in files}
