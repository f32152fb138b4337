"""Several machines: they must see one output folder, which is found out before somebody waits for a file for ever."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from rl.errors import RewindError
from trainers.common.sharding import on_main

PATIENCE = 90.0
"""Seconds that a file may take until other machines see it in a folder that they share: NFS keeps a listing for 60."""


def check_shared(file: Path) -> None:
    """See that a file which the main process has written is there for every process; all must call it.

    Raises:
        RewindError: it is not, on a machine with a folder of its own; the other processes exit without a word.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    until = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.5)
    lacking = [host for host in gather_object([None if file.exists() else socket.gethostname()]) if host is not None]

    def refuse() -> None:
        if lacking:
            raise RewindError(
                f"{file} is not there on {lacking[0]}: on several machines the output folder must be one that all of "
                "them share, under the same path"
            )

    on_main(refuse)
