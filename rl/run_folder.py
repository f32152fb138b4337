"""A run folder: claimed once, never overwritten by accident, with the resolved config and the git revision in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rl.errors import RewindError

CONFIG_FILE = "run.json"
_NOT_COMPARED = {"resume", "overwrite", "config", "output", "output_dir"}


def claim(folder: Path, config: dict[str, Any], *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make a run folder and write `run.json` into it: the resolved config and the git revision.

    Args:
        folder: the output folder.
        config: resolved arguments, JSON values.
        resume: go on in a folder that an earlier run with the same config claimed.
        overwrite: remove what an earlier run left; only a folder with a `run.json` is ever removed.

    Raises:
        RewindError: the folder exists and neither was asked for, holds something else, or the config differs.
    """
    marker = folder / CONFIG_FILE
    if folder.exists() and not folder.is_dir():
        raise RewindError(f"the output {folder} is a file: choose another name")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and resume and marker.is_file():
        before = json.loads(marker.read_text(encoding="utf-8")).get("config", {})
        after = json.loads(json.dumps(config))
        changed = sorted(k for k in {*before, *after} - _NOT_COMPARED if before.get(k) != after.get(k))
        if changed:
            raise RewindError(
                f"{folder} was begun with other values of {', '.join(changed)}: resume with the same ones, or use "
                "another --output"
            )
        return folder
    if occupied and not (overwrite and marker.is_file()):
        hint = "use --resume, --overwrite or another --output" if marker.is_file() else "use another --output"
        raise RewindError(f"the output folder {folder} exists and is not empty: {hint}")
    if occupied:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"config": config, "git_revision": git_revision()}
    marker.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    return folder


def git_revision() -> str | None:
    """The commit of the code that runs, with '+' if files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
