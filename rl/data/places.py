"""Where the paths in a data set lead: the folders that they may start from, judged as they are written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rl.errors import RewindError
from rl.paths import as_written, expanded, is_file

ANCESTORS = 3
"""Folders above the file's that paths may start from."""
_logger = logging.getLogger("rl")


def roots_of(file: Path, folder: Path, image_root: str | Path | None, names: Iterable[str]) -> list[Path]:
    """The folders that image paths may start from, in the order in which they are tried.

    They are `image_root` and the data's own `folder`; without the former the folders above it, too, if only there one
    of `names` is found, which is said.

    Raises:
        RewindError: there is no `image_root`.
    """
    folder = as_written(folder)
    if image_root is not None:
        root = as_written(image_root)
        if not root.is_dir():
            raise RewindError(f"there is no folder {image_root} for images to be in: check --image_root")
        return [root, folder]
    relative = [name for name in names if not expanded(name).is_absolute()]
    for root in (folder, *folder.parents[:ANCESTORS]):
        if any((path := below(name, root, [root])) is not None and is_file(path) for name in relative):
            if root == folder:
                break
            _logger.warning("%s: image paths start from %s, where they are found (--image_root sets it)", file, root)
            return [root, folder]
    return [folder]


def below(name: str, root: Path, roots: Sequence[Path]) -> Path | None:
    """The path that a name means from `root`, links not followed, if it ends in one of `roots`."""
    # Texts, for pathlib takes most of the time that a large data set is read in.
    given = os.path.expanduser(name)  # noqa: PTH111
    path = os.path.normpath(os.path.join(root, given))  # noqa: PTH118
    inside = any(_is_in(path, str(one)) for one in roots)
    # A full path may lead into a folder that was itself given by a link to it.
    inside = inside or (given.startswith(os.sep) and any(_is_in(path, os.path.realpath(one)) for one in roots))
    return Path(path) if inside else None


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


def located(name: str, roots: Sequence[Path]) -> Path | None:
    """Where a file should be: where it is, else below the first root; None if the name leads out of all `roots`."""
    inside = [path for root in roots if (path := below(name, root, roots)) is not None]
    if len(inside) > 1:
        return next((path for path in inside if is_file(path)), inside[0])
    return inside[0] if inside else None
