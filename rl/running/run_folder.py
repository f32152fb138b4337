"""A run folder: claimed once, never overwritten by accident, with the resolved config and the git revision in it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.running import lock
from rl.running.files import partial, write_whole
from rl.running.resumption import differences, in_words

logger = logging.getLogger("rl")
CONFIG_FILE = "run.json"
REMOVED_FILE = "run.json.removed"
"""The other name of the marker while `--overwrite` removes what it belonged to."""
BY_CHECKPOINTS = "--resume true"
"""The flag of scripts that go on from checkpoints, which they keep in their folder."""
_claimed: list[tuple[Path, str] | None] = []
"""Each folder that this process has claimed, with the flag that goes on in it; None where there is no such flag."""


def claim(
    folder: Path,
    script: str,
    config: dict[str, Any],
    *,
    inputs: Sequence[str | Path | None] = (),
    resume: bool | None = None,
    overwrite: bool = False,
    each_process: bool = False,
    resume_flag: str = "--resume",
    harmless: Mapping[str, str] | None = None,
    scratch: Sequence[str] = (),
) -> Path:
    """Make a run folder and write `run.json` into it: the script, its resolved config and the git revision.

    Call it last, when everything that can be wrong with the input has been looked at. This process then holds the
    folder until it ends (`rl.running.lock`). What a run left that finished nothing (`run.json`, TensorBoard's files,
    empty ones) is taken over without a question.

    Args:
        folder: the output folder.
        script: name of the script that runs; another script's folder is neither resumed nor removed.
        config: resolved arguments, JSON values.
        inputs: files, folders or names that the run reads; a folder that holds one of them is never removed.
        resume: go on in a folder that an earlier run with the same config claimed; None if the script cannot.
        overwrite: remove what an earlier run left; only a folder with a `run.json` of this script is ever removed.
        each_process: every process of a launch claims a folder of its own; otherwise only the first may claim.
        resume_flag: how a user asks the script to go on.
        harmless: arguments that may differ when a run goes on, by name, and what the difference means.
        scratch: names in the folder that a run writes before it has finished anything.

    Raises:
        RewindError: the folder exists and neither was asked for, holds something else, or the config differs; another
            process is at work in it; it cannot be written; a second process of a script that runs in one.
    """
    if int(os.environ.get("RANK", "0")) > 0 and not each_process:
        raise RewindError(f"{script} runs in one process: start it with python, or with a launcher's --num_processes 1")
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise RewindError(
                f"the output {folder} is a {'link' if folder.is_symlink() else 'file'}: choose another name"
            )
        _left_by(folder, script)  # before anything is written into a folder of something else
        folder.mkdir(parents=True, exist_ok=True)
        new = lock.take(folder)
        try:
            left = _left_by(folder, script)
            if left is not None and not _finished_something(folder, scratch):
                logger.warning("%s: the run before finished nothing, so its folder is taken over", folder)
                _empty(folder)
                left = None
            if left is not None and resume:
                _go_on(folder, left, config, harmless or {})
            else:
                if left is not None:
                    _may_be_replaced(folder, overwrite, inputs, None if resume is None else resume_flag)
                    _empty(folder)
                mark(folder, script, config)
        except BaseException:
            if new:
                lock.release(folder)
            raise
    except OSError as error:
        shown = str(folder) if len(str(folder)) <= 100 else f"{str(folder)[:97]}..."
        why = "a part of its path is a file" if isinstance(error, NotADirectoryError) else error.strerror or str(error)
        raise RewindError(f"the output folder {shown} cannot be written ({why}): use another one") from error
    _claimed.append(None if resume is None else (folder, resume_flag))
    return folder


def how_to_go_on() -> str:
    """How to go on in what this process has claimed, behind what is said of an interruption; empty if one cannot."""
    if not _claimed or _claimed[-1] is None:
        return ""
    folder, flag = _claimed[-1]
    if flag == BY_CHECKPOINTS and not any(folder.rglob("checkpoint-*")):
        return f", no checkpoint yet (--save_steps): the same command with {flag} trains from the first step again"
    return f"; the same command with {flag} goes on from there"


def _left_by(folder: Path, script: str) -> dict[str, Any] | None:
    """What `run.json` says that an earlier run of a script left, or that of a replaced run; None in an empty folder.

    Raises:
        RewindError: the folder holds something else.
    """
    marker = folder / CONFIG_FILE
    # A run that was killed while it claimed the folder has left no more than a part of the marker.
    ours = {marker, partial(marker), folder / lock.LOCK_FILE}
    if not folder.is_dir() or (not any(path not in ours for path in folder.iterdir()) and not marker.exists()):
        return None
    left = _read(marker if marker.exists() else folder / REMOVED_FILE)
    if left.get("script") != script:
        whose = f"a run of {left['script']}" if "script" in left else "no run of this script"
        raise RewindError(f"the output folder {folder} is not empty and holds {whose}: use another --output")
    return left


def _finished_something(folder: Path, scratch: Sequence[str]) -> bool:
    """Whether a run left more than its marker, TensorBoard's files, empty ones and parts of files."""
    ours = {CONFIG_FILE, REMOVED_FILE, lock.LOCK_FILE, *scratch}
    for place, folders, files in os.walk(folder):
        top = Path(place) == folder
        folders[:] = [name for name in folders if not (top and name in ours)]
        for name in files:
            path = Path(place) / name
            nothing = name.startswith("events.out.tfevents.") or name.endswith(".partial") or (top and name in ours)
            if not nothing and (path.is_symlink() or path.stat().st_size > 0):
                return True
    return False


def _go_on(folder: Path, left: dict[str, Any], config: dict[str, Any], harmless: Mapping[str, str]) -> None:
    """Compare a run's config with that which it began with, and note what is different now.

    Raises:
        RewindError: it would not be the same run.
    """
    if not (folder / CONFIG_FILE).exists():
        raise RewindError(f"a run that was to replace what {folder} held was killed: use --overwrite again")
    after = json.loads(json.dumps(config))
    begun_in = left.get("directory")
    changed = differences(left.get("config", {}), after, Path(begun_in) if begun_in else None)
    wrong = [in_words(name, values) for name, values in changed.items() if name not in harmless]
    if wrong:
        raise RewindError(
            f"{folder} was begun with other values of {', '.join(wrong)}: resume with the same ones, or use another "
            "--output"
        )
    for name, values in changed.items():
        logger.warning("%s goes on with another %s: %s", folder, in_words(name, values), harmless[name])
    if changed:
        told = [*left.get("changes", []), {name: list(values) for name, values in changed.items()}]
        now = {**left, "config": after, "directory": str(Path.cwd()), "changes": told}
        write_whole(folder / CONFIG_FILE, json.dumps(now, indent=1) + "\n")


def _may_be_replaced(
    folder: Path, overwrite: bool, inputs: Sequence[str | Path | None], resume_flag: str | None
) -> None:
    """Raise a `RewindError` unless what an earlier run left may be removed."""
    if not overwrite:
        hint = f"{resume_flag}, " if resume_flag else ""
        raise RewindError(f"the output folder {folder} exists: use {hint}--overwrite or another output folder")
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(folder.resolve()):
            raise RewindError(f"--overwrite would remove {path}, which this run reads: use another --output")


def mark(folder: Path, script: str, config: dict[str, Any]) -> None:
    """Write the `run.json` of a run that begins in a folder."""
    found = {"script": script, "config": config, "directory": str(Path.cwd()), "git_revision": git_revision()}
    write_whole(folder / CONFIG_FILE, json.dumps(found, indent=1, default=str) + "\n")
    (folder / REMOVED_FILE).unlink(missing_ok=True)


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
        elif path not in (removed, folder / lock.LOCK_FILE):
            path.unlink()


def move_finished(folder: Path, script: str) -> Path | None:
    """Move a finished run of a script (one with `results.json`) out of the way, to FOLDER.1, FOLDER.2, ...

    Returns:
        Where it is now; None if there was nothing to move.

    Raises:
        RewindError: another process is at work in it.
    """
    if not (folder / "results.json").is_file() or _read(folder / CONFIG_FILE).get("script") != script:
        return None
    if (folder / lock.LOCK_FILE).exists() and lock.take(folder):
        lock.release(folder)
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(moved)


def _read(marker: Path) -> dict[str, Any]:
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
