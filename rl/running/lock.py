"""One run at work in a folder: a file names the host and process that hold it; that of a dead one is taken over."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from rl.errors import RewindError

LOCK_FILE = "run.lock"
_held: dict[Path, int] = {}
"""Folders that this process holds, and its id: a child that it forks holds none of them."""


def take(folder: Path) -> bool:
    """Hold a folder until `release`, or until this process ends; False if it holds it already.

    Raises:
        RewindError: another process that still runs holds it, or one of another host, of which that cannot be known.
        OSError: the folder cannot be written to.
    """
    folder = folder.resolve()
    if _held.get(folder) == os.getpid():
        return False
    lock, mine = (
        folder / LOCK_FILE,
        {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())},
    )
    for _ in range(10):  # each time another process took or left it between two looks
        try:
            number = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _remove_stale(lock)
            continue
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(json.dumps(mine))
        if not _held:
            atexit.register(release_all)
        _held[folder] = os.getpid()
        return True
    raise RewindError(f"other processes begin runs in {folder} right now: wait for them, or use another output folder")


def release(folder: Path) -> None:
    """Let go of a folder that this process holds."""
    if _held.pop(folder.resolve(), None) == os.getpid():
        with suppress(OSError):  # somebody removed or moved the folder
            (folder.resolve() / LOCK_FILE).unlink()


def release_all() -> None:
    """Let go of all folders that this process holds."""
    for folder in list(_held):
        release(folder)


def _remove_stale(lock: Path) -> None:
    """Remove a lock whose holder is gone.

    Raises:
        RewindError: it is not, or nobody can know.
    """
    text = _read(lock)
    if text is None:
        return
    try:
        found = json.loads(text)
        host, pid, started = str(found["host"]), int(found["pid"]), found["started"]
    except (ValueError, KeyError, TypeError):  # its holder was killed while it wrote
        host, pid, started = socket.gethostname(), 0, None
    if host != socket.gethostname():
        raise RewindError(
            f"process {pid} on the host {host} holds the output folder {lock.parent}: wait for it, or remove {lock} if "
            "it runs no longer"
        )
    if pid and _runs(pid, started):
        raise RewindError(
            f"process {pid} is at work in the output folder {lock.parent}: wait for it, end it, or use another output "
            "folder"
        )
    aside = lock.with_name(f"{LOCK_FILE}.{os.getpid()}")
    with suppress(FileNotFoundError):  # another process was faster
        lock.rename(aside)
        if aside.read_text(encoding="utf-8") == text:
            aside.unlink()
        else:  # another process has taken it over between the two looks: its lock goes back
            aside.rename(lock)


def _read(lock: Path) -> str | None:
    """What a lock says, None if it is gone; its holder may be writing it just now."""
    text: str | None = ""
    for _ in range(5):
        try:
            text = lock.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        if text:
            break
        time.sleep(0.1)
    return text


def _runs(pid: int, started: str | None) -> bool:
    """Whether a process of this host runs and is the one that began then: ids are used again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    now = _started(pid)
    return now != "" and (started is None or now is None or now == started)


def _started(pid: int) -> str | None:
    """When a process began, in words that no other process of its id shares; '' if it is dead, None if nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        dead = fields[0] in "ZX"  # Z: its parent has not asked for it yet
        return "" if dead else f"{boot} {fields[19]}"
    except OSError:
        pass
    try:
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    except OSError:
        return None
    return shown.stdout.strip() or None
