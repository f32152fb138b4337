"""Pictures that nobody else keeps in a file, in one of ours: memory holds what is being looked at."""

from __future__ import annotations

import mmap
import tempfile

import numpy as np

from rl.errors import RewindError


class PicturesOnDisk:
    """Arrays one behind the other in a temporary file without a name, which is gone with the process.

    First all are added, then they are read.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (read until nobody holds a picture)
        self._kept: list[tuple[int, np.dtype, tuple[int, ...]]] = []
        self._end = 0

    def add(self, picture: np.ndarray) -> None:
        """Keep an array of any shape.

        Raises:
            RewindError: the disk is full.
        """
        array = np.ascontiguousarray(picture)
        try:
            self._file.write(array.data)
            self._file.flush()  # what is full is said here: a map of missing bytes would end the process
        except OSError as error:
            told = f"the pictures of test cases cannot be kept in {tempfile.gettempdir()} ({error.strerror})"
            raise RewindError(f"{told}: make room there, or set TMPDIR to another folder") from error
        self._kept.append((self._end, array.dtype, array.shape))
        self._end += array.nbytes

    def arrays(self) -> list[np.ndarray]:
        """All of them in their order, mapped into memory; whoever writes into one changes a copy of that page."""
        if not self._end:
            return [np.empty(shape, dtype) for _, dtype, shape in self._kept]
        mapped = mmap.mmap(self._file.fileno(), self._end, access=mmap.ACCESS_COPY)
        return [np.ndarray(shape, dtype, mapped, begin) for begin, dtype, shape in self._kept]
