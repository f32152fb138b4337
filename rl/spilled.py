"""What grows with the data and is read now and then: in a temporary file that is mapped into memory, not in memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from rl.errors import RewindError

AT_ONCE = 1 << 18
"""Bytes that wait to be written."""
IN_MEMORY = 1 << 20
"""Bytes up to which no file is needed: a mixture may be of a thousand short lists, and each map holds a descriptor."""


class Spilled:
    """Bytes one behind the other, many of them in a file without a name, which is gone with the process.

    First all are added, then they are read. Of a map the system takes pages back when it needs them. A pickle holds
    the bytes themselves.
    """

    def __init__(self) -> None:
        self.size = 0
        self._few = bytearray()
        self._file: Any = None

    def add(self, content: Any) -> None:
        """Add the bytes of any buffer.

        Raises:
            RewindError: they cannot be written, e.g. to a full disk.
        """
        if not memoryview(content).nbytes:
            return
        these = memoryview(content).cast("B")
        self.size += these.nbytes
        if self._file is not None:
            self._try(lambda file: file.write(these))
        elif self.size <= IN_MEMORY:
            self._few += these
        else:
            self._try(lambda _: self._open())
            self._try(lambda file: file.write(self._few))
            self._few = bytearray()
            self._try(lambda file: file.write(these))

    def mapped(self) -> Any:
        """All of them as a buffer, for good; whoever writes into it changes a copy of that page.

        Raises:
            RewindError: as for `add`.
        """
        if self._file is None:
            return self._few
        self._try(lambda file: file.flush())  # said here: a map of bytes that are missing would end the process
        found = self._try(lambda file: mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY))
        self._file.close()  # the map has a descriptor of its own
        return found

    def _open(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=AT_ONCE)  # noqa: SIM115  (it stays open until it is mapped)

    def _try(self, work: Callable[[Any], Any]) -> Any:
        try:
            return work(self._file)
        except OSError as error:
            told = f"what would take too much memory cannot be kept in a temporary file ({error.strerror})"
            why = f"make room in {os.environ.get('TMPDIR', 'the folder of temporary files')}, or set TMPDIR to another"
            raise RewindError(f"{told}: {why}") from error


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
