"""What grows with the data and is read now and then: in a temporary file that is mapped into memory, not in memory."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np

from rl.errors import RewindError

AT_ONCE = 1 << 18
"""Bytes that wait to be written."""


class Spilled:
    """Bytes one behind the other in a file without a name, which is gone with the process.

    First all are added, then they are read. Of a map the system takes pages back when it needs them.
    """

    def __init__(self) -> None:
        self.size = 0
        self._file: Any = tempfile.TemporaryFile(buffering=AT_ONCE)  # noqa: SIM115  (it stays open until it is mapped)

    def add(self, content: Any) -> None:
        """Add the bytes of any buffer.

        Raises:
            RewindError: they cannot be written, e.g. to a full disk.
        """
        self._try(lambda: self._file.write(content))
        self.size += memoryview(content).nbytes

    def mapped(self) -> Any:
        """All of them as a buffer, for good; whoever writes into it changes a copy of that page.

        Raises:
            RewindError: as for `add`.
        """
        self._try(self._file.flush)  # said here, for a map of bytes that are missing would end the process
        with self._file as file:
            return mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY) if self.size else b""

    def _try(self, work: Any) -> None:
        try:
            work()
        except OSError as error:
            told = f"what would take too much memory cannot be kept in {tempfile.gettempdir()} ({error.strerror})"
            raise RewindError(f"{told}: make room there, or set TMPDIR to another folder") from error


class SpilledArrays:
    """Arrays of any shapes, kept in the same way."""

    def __init__(self) -> None:
        self._bytes = Spilled()
        self._kept: list[tuple[int, np.dtype, tuple[int, ...]]] = []

    def append(self, given: np.ndarray) -> None:
        """Keep one; errors as for `Spilled.add`."""
        array = np.ascontiguousarray(given)
        self._kept.append((self._bytes.size, array.dtype, array.shape))
        self._bytes.add(array.data)

    def arrays(self) -> list[np.ndarray]:
        """All of them in their order."""
        mapped = self._bytes.mapped()
        return [np.ndarray(shape, dtype, mapped, begin) for begin, dtype, shape in self._kept]
