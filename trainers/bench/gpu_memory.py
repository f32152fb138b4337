"""The most memory that a card held while other processes ran on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from contextlib import suppress
from types import TracebackType

QUERY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id")


class Watched:
    """Asks nvidia-smi twice a second within a `with`; `peak_gib` is None on a machine without it."""

    def __init__(self) -> None:
        self.peak_gib: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        if shutil.which(QUERY[0]):
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
            answer = subprocess.run([*QUERY, card], capture_output=True, text=True, check=False)
            with suppress(ValueError):  # a card that does not tell says so in words
                self.peak_gib = max(self.peak_gib or 0.0, float(answer.stdout) / 1024)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
