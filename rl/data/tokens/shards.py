"""Rows by key in memory-mapped Arrow files that are only ever added: whole or absent, whatever kills who writes.

A shard is an Arrow IPC file `KIND-NAME.arrow`, its name a hash of its keys: written beside, synced and moved into
place, so several processes may write at once (who writes the same rows writes the same file). An index of 16 bytes a
row stands in memory, the rows do not.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rl.errors import RewindError
from rl.picture_keys import KEY_BYTES

logger = logging.getLogger("rl")
KEY = pa.field("key", pa.binary(KEY_BYTES))


class Shards:
    """The shards of one kind in a folder.

    Args:
        folder: made with the first shard.
        kind: the first part of the files' names.
        fields: the columns beside the key.
    """

    def __init__(self, folder: Path, kind: str, fields: Sequence[pa.Field]) -> None:
        self.folder, self.kind, self.schema = folder, kind, pa.schema([KEY, *fields])
        self._tables: list[pa.RecordBatch] = []
        self._known: set[str] = set()
        self._firsts = np.zeros(1, dtype=np.int64)  # the number of each shard's first row, and of all rows
        self._words = np.zeros(0, dtype=np.uint64)  # the first half of each key, sorted,
        self._next = np.zeros(0, dtype=np.uint32)  # the four bytes behind it, and whose they are
        self._order = np.zeros(0, dtype=np.int32)
        self.refresh()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __deepcopy__(self, _: Any) -> Shards:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.folder, self.kind, list(self.schema)[1:])

    def refresh(self) -> None:
        """Take in the shards that have come since; a damaged one is left out with a warning."""
        new = [file for file in sorted(self.folder.glob(f"{self.kind}-*.arrow")) if file.name not in self._known]
        found = [table for file in new if (table := self._open(file)) is not None]
        self._known |= {file.name for file in new}
        if not found:
            return
        self._tables += found
        self._firsts = np.cumsum([0, *(table.num_rows for table in self._tables)])
        words = np.concatenate([_words(table)[:, 0] for table in self._tables])
        self._order = np.argsort(words, kind="stable").astype(np.int32)
        self._words = words[self._order]
        self._next = np.concatenate([_next(_words(table)) for table in self._tables])[self._order]

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """The number of the row of each key, int64 [N]; -1 where there is none."""
        found = np.full(len(keys), -1, dtype=np.int64)
        if not len(keys) or not len(self._words):
            return found
        asked = np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)
        first, behind = asked[:, 0], _next(asked)
        places = np.searchsorted(self._words, first)
        left = np.arange(len(keys))
        while len(left):  # once, unless the first halves of two keys are equal
            left = left[places[left] < len(self._words)]
            there = self._words[places[left]] == first[left]
            same = there & (self._next[places[left]] == behind[left])
            found[left[same]] = self._order[places[left[same]]]
            left = left[there & ~same]
            places[left] += 1
        return found

    def values(self, row: int, column: str) -> np.ndarray:
        """A row's list in a column, without a copy."""
        table, line = self._at(row)
        lists = table.column(column)
        begin, end = lists.offsets[line].as_py(), lists.offsets[line + 1].as_py()
        found: np.ndarray = lists.values.to_numpy()[begin:end]
        return found

    def numbers(self, rows: np.ndarray, column: str) -> np.ndarray:
        """The numbers of rows [N] in a column, int32 [N]."""
        if not len(rows):
            return np.zeros(0, np.int32)
        shards = np.searchsorted(self._firsts, rows, side="right") - 1
        found = np.zeros(len(rows), np.int32)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            found[here] = self._tables[shard].column(column).to_numpy()[rows[here] - self._firsts[shard]]
        return found

    def binary(self, row: int, column: str) -> bytes:
        """A row's bytes in a column."""
        table, line = self._at(row)
        return bytes(table.column(column)[line].as_py())

    def append(self, keys: Sequence[bytes], columns: dict[str, pa.Array]) -> None:
        """Add rows as a shard.

        Raises:
            RewindError: it cannot be written, e.g. to a full disk; the other shards stay as they are.
        """
        if not keys:
            return
        name = f"{self.kind}-{blake2b(b''.join(keys), digest_size=KEY_BYTES).hexdigest()}.arrow"
        batch = pa.record_batch([pa.array(keys, KEY.type), *columns.values()], schema=self.schema)
        _write(self.folder / name, batch)
        self._known -= {name}  # a damaged one has stood there
        self.refresh()

    def _open(self, file: Path) -> pa.RecordBatch | None:
        """What a file holds, mapped into memory: no handle stays open."""
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
                if not reader.schema.equals(self.schema) or reader.num_record_batches != 1:
                    raise RewindError(f"{file} has other columns than a token cache's: move it out of the folder")
                return reader.get_batch(0)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s is damaged and left out: %s", file, " ".join(str(error).split())[:200])
            return None

    def _at(self, row: int) -> tuple[pa.RecordBatch, int]:
        shard = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self._tables[shard], row - int(self._firsts[shard])


def _words(table: pa.RecordBatch) -> np.ndarray:
    """The keys as two numbers each, uint64 [N, 2], without a copy."""
    found: np.ndarray = np.frombuffer(table.column("key").buffers()[1], dtype=np.uint64)[: 2 * table.num_rows]
    return found.reshape(-1, 2)


def _next(words_N2: np.ndarray) -> np.ndarray:
    """The first four bytes of second halves, uint32 [N]: with the first half, 96 bits tell pictures apart."""
    found: np.ndarray = (words_N2[:, 1] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return found


def lists_of(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Arrays [K] as a column of lists."""
    offsets = np.cumsum([0, *(len(one) for one in arrays)])
    values = np.concatenate([*arrays]) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def _write(file: Path, batch: pa.RecordBatch) -> None:
    """Write beside, to the disk itself, and move into place."""
    beside = file.with_name(f".{file.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as raw:
            with pa.ipc.new_file(raw, batch.schema) as writer:
                writer.write_batch(batch)
            raw.flush()
            os.fsync(raw.fileno())
        beside.replace(file)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            beside.unlink()
        raise RewindError(
            f"the tokens cannot be written to {file.parent}: {error}; what it holds stays valid"
        ) from error


def remove_torn(folder: Path) -> None:
    """Remove what writers of this host have left that were killed."""
    for file in folder.glob(f".*.arrow-{socket.gethostname()}-*"):
        with suppress(OSError, ValueError):
            try:
                os.kill(int(file.name.rpartition("-")[2]), 0)
            except ProcessLookupError:
                file.unlink()
