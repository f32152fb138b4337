"""How a script ends: below its progress bars, without a traceback for `| head`, and out of its process group."""

from __future__ import annotations

import gc
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO


def close_bars() -> None:
    """Let the progress bars that are open end their lines, so that what is printed next stands below them."""
    bars: Any = sys.modules.get("tqdm")
    if bars is None:
        return
    for bar in list(getattr(bars.tqdm, "_instances", [])):
        bar.close()


def reader_is_gone(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is that nobody reads what this process prints."""
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__cause__ or error.__context__
    return error is not None and any(_is_broken(stream) for stream in (sys.stdout, sys.stderr))


def leave_quietly() -> int:
    """Drop what nobody will read; the exit code of a program that SIGPIPE ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_broken(stream):
            os.dup2(nowhere, stream.fileno())
    return 141


def _is_broken(stream: TextIO) -> bool:
    with suppress(AttributeError, OSError, ValueError):  # it has no number, as under a test
        found = select.poll()
        found.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in found.poll(0))
    return False


def leave_group(ended: bool) -> None:
    """Leave the process group of a launch: one that is still there when Python ends may abort it (SIGABRT).

    Args:
        ended: the script has come to its end, so all processes have, and they leave together. After an error nobody
            waits for the others, which notice that this process is gone; a GPU's group is left to the end of the
            process, since NCCL would wait for work that never ends.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    distributed = torch.distributed
    gloo = distributed.get_backend() == "gloo"
    if not ended and not gloo:
        return
    gc.collect()  # wrapped models hold the group too
    with suppress(RuntimeError):  # another process is gone already
        if ended and gloo:
            distributed.barrier()
        distributed.destroy_process_group()
