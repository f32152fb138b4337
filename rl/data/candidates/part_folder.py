"""A folder of Parquet parts that grows while a run draws, and how many small parts become few big ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from rl.checks import check_whole
from rl.data.candidates.stored import Parts
from rl.errors import RewindError
from rl.paths import expanded
from rl.running import lock
from rl.running.run_folder import CONFIG_FILE

ROW_GROUP = 256
"""Rows that are read at once."""
BIG = 1 << 14
"""Rows from which on a part is left as it is."""
_HOLDS = b"rewind.holds"
"""In a part that others were joined to: their names and how many rows of each it has."""
_BESIDE = ".compacting"


class PartFolder:
    """`part-NUMBER-*.parquet` in the order of their names; of the same row in several, readers take the last.

    A part has a name that no other one ever had, and only the object that began it adds rows to it, by writing it anew.
    """

    schema: ClassVar[pa.Schema]
    later: ClassVar[Sequence[str]] = ()
    """Columns that a part of an earlier version may lack."""
    what: ClassVar[str]
    """What rows are, and the name of their folder in a run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)

    def parts(self) -> list[Path]:
        """The files, in order; none before the first rows."""
        return sorted(self.folder.glob("part-*.parquet"))

    def new_part(self) -> Path:
        """A name behind those of all parts that are there."""
        return self.folder / f"part-{max(map(_number, self.parts()), default=-1) + 1:06d}-{uuid4().hex[:8]}.parquet"

    def opened(self) -> Parts:
        """The parts as they are now; a damaged one is left out with a warning.

        Raises:
            RewindError: no part, or a Parquet file with other columns.
        """
        for _ in range(10):
            if not (files := self.parts()):
                break
            with suppress(FileNotFoundError):  # joined to another one between the two looks
                return Parts(files, self.schema, self.later, self.what)
        where = f"give the folder '{self.what}' of a run"
        raise RewindError(f"{self.folder} holds no scored {self.what}: {where}")

    def compact(self, rows: int = BIG) -> int:
        """Join neighbouring parts of fewer than `rows` rows until they have as many; what is read stays the same.

        A big part is on disk before those that it holds are removed, from the last to the first. Whatever ends this
        midway, every reader finds each row once; the next call removes what was left. Memory holds some row groups.
        Whoever has the store open and looks at a row later may have to open it again.

        Args:
            rows: at least 1.

        Returns:
            How many parts there are now, without damaged ones.

        Raises:
            RewindError: nothing to read, a part with other columns, no place on the disk; or another process holds the
                store or the run folder that it lies in.
        """
        check_whole("rows", rows, least=1)
        self.opened()  # says so if there is nothing to join
        with _held(self.folder):
            (self.folder / _BESIDE).unlink(missing_ok=True)  # of a call that was killed
            for file in self.opened().files:
                if file.is_file():  # else removed a moment ago
                    _remove(self.folder, _held_by(file))
            for numbers in _neighbours(parts := self.opened(), rows):
                self._join(parts, numbers)
            return len(self.opened().files)

    def _join(self, parts: Parts, numbers: Sequence[int]) -> None:
        """Write some parts into one whose name stands behind theirs and before the next one's, and remove them."""
        last = parts.files[numbers[-1]].name.split("-")
        joined = int(last[2][1:7]) + 1 if last[2].startswith("z") else 1
        # No other part has a number between, nor a letter behind z.
        file, beside = self.folder / f"part-{last[1]}-z{joined:06d}.parquet", self.folder / _BESIDE
        held = {parts.files[number].name: parts.rows[number] for number in numbers}
        schema = self.schema.with_metadata({_HOLDS: json.dumps(held)})
        with pq.ParquetWriter(beside, schema) as writer:
            for table in _regrouped(parts, numbers):
                writer.write_table(table, row_group_size=ROW_GROUP)
        _to_disk(beside)
        beside.replace(file)
        _to_disk(self.folder)
        _remove(self.folder, held)


def _number(part: Path) -> int:
    return int(part.name.split("-")[1])


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a store, and the run folder that it lies in, so that no run which says so writes to it."""
    places = [folder.parent, folder] if (folder.parent / CONFIG_FILE).is_file() else [folder]
    try:
        with ExitStack() as stack:
            for place in places:
                if lock.take(place):
                    stack.callback(lock.release, place)
            yield
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            (folder / _BESIDE).unlink()
        raise RewindError(f"the parts of {folder} cannot be joined (nothing of them is lost): {error}") from error


def _neighbours(parts: Parts, rows: int) -> Iterator[list[int]]:
    """Which parts are joined: several in a row that are small, those of one number always together."""
    some: list[int] = []
    for _, alike in groupby(range(len(parts.files)), key=lambda number: _number(parts.files[number])):
        cell = list(alike)
        big = len(cell) == 1 and parts.rows[cell[0]] >= rows
        some += [] if big else cell
        if big or sum(parts.rows[number] for number in some) >= rows:
            if len(some) > 1:
                yield some
            some = []
    if len(some) > 1:
        yield some


def _regrouped(parts: Parts, numbers: Sequence[int]) -> Iterator[pa.Table]:
    """The rows that parts had when they were opened, `ROW_GROUP` or a little more at a time."""
    waiting: list[pa.Table] = []
    for number in numbers:
        left = parts.rows[number]
        for group in range(parts.groups[number]):
            table = parts.read(number, group).slice(0, left)  # its owner may have added some since
            left -= len(table)
            waiting.append(table)
            if sum(map(len, waiting)) >= ROW_GROUP:
                table = pa.concat_tables(waiting)
                whole = len(table) - len(table) % ROW_GROUP
                yield table.slice(0, whole)
                waiting = [table.slice(whole)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _held_by(part: Path) -> dict[str, int]:
    """The parts that were joined to one, by name, and how many rows of each."""
    found = (pq.read_schema(part).metadata or {}).get(_HOLDS)
    return {} if found is None else json.loads(found)


def _remove(folder: Path, held: Mapping[str, int]) -> None:
    """Remove parts that another one holds, the last first: what is left is then read in the same order.

    One that has more rows by now, because a process that nothing is known of adds to it, stays: they are read once.
    """
    for name, count in reversed(list(held.items())):
        file = folder / name
        if file.is_file() and pq.read_metadata(file).num_rows == count:
            file.unlink()


def _to_disk(place: Path) -> None:
    """See that what was written is there after a power cut, too."""
    number = os.open(place, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
