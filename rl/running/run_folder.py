"""A run folder: claimed once, never overwritten by accident, with the resolved config and the git revision in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.running.files import partial, write_whole

CONFIG_FILE = "run.json"
REMOVED_FILE = "run.json.removed"
"""The other name of the marker while `--overwrite` removes what it belonged to."""
_NOT_COMPARED = {"resume", "overwrite", "config", "output", "output_dir"}


def claim(
    folder: Path,
    script: str,
    config: dict[str, Any],
    *,
    inputs: Sequence[str | Path | None] = (),
    resume: bool | None = None,
    overwrite: bool = False,
    each_process: bool = False,
) -> Path:
    """Make a run folder and write `run.json` into it: the script, its resolved config and the git revision.

    Call it last, when everything that can be wrong with the input has been looked at.

    Args:
        folder: the output folder.
        script: name of the script that runs; another script's folder is neither resumed nor removed.
        config: resolved arguments, JSON values.
        inputs: files, folders or names that the run reads; a folder that holds one of them is never removed.
        resume: go on in a folder that an earlier run with the same config claimed; None if the script cannot.
        overwrite: remove what an earlier run left; only a folder with a `run.json` of this script is ever removed.
        each_process: every process of a launch claims a folder of its own; otherwise only the first may claim.

    Raises:
        RewindError: the folder exists and neither was asked for, holds something else, or the config differs; a second
            process of a script that runs in one.
    """
    if int(os.environ.get("RANK", "0")) > 0 and not each_process:
        raise RewindError(f"{script} runs in one process: start it with python, or with a launcher's --num_processes 1")
    marker = folder / CONFIG_FILE
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise RewindError(f"the output {folder} is a {'link' if folder.is_symlink() else 'file'}: choose another name")
    # A run that was killed while it claimed the folder has left no more than a part of the marker.
    occupied = folder.is_dir() and any(path != partial(marker) for path in folder.iterdir())
    left = _left_behind(marker if marker.exists() else folder / REMOVED_FILE) if occupied else {}
    if occupied and left.get("script") != script:
        whose = f"a run of {left['script']}" if "script" in left else "no run of this script"
        raise RewindError(f"the output folder {folder} is not empty and holds {whose}: use another --output")
    if occupied and resume:
        if not marker.exists():
            raise RewindError(f"a run that was to replace what {folder} held was killed: use --overwrite again")
        before = left.get("config", {})
        after = json.loads(json.dumps(config))
        changed = sorted(k for k in {*before, *after} - _NOT_COMPARED if before.get(k) != after.get(k))
        if changed:
            raise RewindError(
                f"{folder} was begun with other values of {', '.join(changed)}: resume with the same ones, or use "
                "another --output"
            )
        return folder
    if occupied and not overwrite:
        hint = "" if resume is None else "--resume, "
        raise RewindError(f"the output folder {folder} exists: use {hint}--overwrite or another output folder")
    if occupied:
        for path in inputs:
            if path is not None and Path(path).resolve().is_relative_to(folder.resolve()):
                raise RewindError(f"--overwrite would remove {path}, which this run reads: use another --output")
        _empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"script": script, "config": config, "git_revision": git_revision()}
    write_whole(marker, json.dumps(found, indent=1, default=str) + "\n")
    (folder / REMOVED_FILE).unlink(missing_ok=True)
    return folder


def _empty(folder: Path) -> None:
    """Remove all but the marker, whose other name then says that what is left cannot be resumed. (That takes no room on
    a full disk.)
    """
    removed = folder / REMOVED_FILE
    if (folder / CONFIG_FILE).exists():
        (folder / CONFIG_FILE).replace(removed)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != removed:
            path.unlink()


def move_finished(folder: Path, script: str) -> Path | None:
    """Move a finished run of a script (one with `results.json`) out of the way, to FOLDER.1, FOLDER.2, ...

    Returns:
        Where it is now; None if there was nothing to move.
    """
    if not (folder / "results.json").is_file() or _left_behind(folder / CONFIG_FILE).get("script") != script:
        return None
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(moved)


def _left_behind(marker: Path) -> dict[str, Any]:
    """What an earlier run wrote into its `run.json`; empty if there is none that can be read."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
