"""Paths as people write them: `~` is the home folder, and what is judged is what is written, not where links lead."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` filled in; one of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises where there is no such user)


def as_written(path: str | Path) -> Path:
    """The path from the root on, without `.` and `..`; links in it are not followed."""
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100  (Path.resolve would follow links)


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that no file can have is none."""
    return os.path.isfile(path)  # noqa: PTH113  (Path.is_file raises at a name that is too long)
