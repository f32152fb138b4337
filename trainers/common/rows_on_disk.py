"""Rows that are made while what they come from goes by and lie in an Arrow file: memory never holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset

from rl.errors import RewindError
from rl.running.files import partial
from rl.triplets import Scored, Triplet
from trainers.common.machines import check_shared
from trainers.common.sharding import on_main

AT_ONCE = 256
"""Rows that are made at once."""
Thing = TypeVar("Thing")
Columns = dict[str, Any]
"""Some rows: a list or an array for each column."""


def rows_on_disk(
    file: Path, schema: pa.Schema, things: Iterable[Thing], make: Callable[[list[Thing]], Columns]
) -> Dataset:
    """A data set of rows in `file`, whole or absent, which are read from there; `make` makes those of some things.

    Every process goes through `things`, in which processes may wait for one another; the main one makes the rows and
    writes them, and all read them.

    Raises:
        RewindError: what `make` raises, a file that cannot be written, or one that another machine does not see.
    """
    state, failed = PartialState(), list[RewindError]()
    writer = _Writer(partial(file), schema)
    for part in _parts(things):
        if failed or not state.is_main_process:
            continue
        try:
            writer.write(make(part))
        except RewindError as error:
            writer.drop()
            if state.num_processes == 1:
                raise
            failed.append(error)  # said at the end, when the others listen

    def finish() -> None:
        if failed:
            raise failed[0]
        writer.finish(file)

    on_main(finish)
    check_shared(file)
    return Dataset.from_file(str(file))


def in_passing(
    groups: Iterable[tuple[Triplet, Iterable[Scored]]], totals: Any, needed: bool = True
) -> Iterator[tuple[Triplet, Sequence[Scored]]]:
    """Groups one at a time as they are; `totals`, a list or an array, gets every total that is known.

    Raises:
        RewindError: at the end, if there is no total and some are `needed`.
    """
    for triplet, group in groups:
        scored = list(group)
        totals.extend(s.total for s in scored if s.total is not None)
        yield triplet, scored
    if needed and not len(totals):
        raise RewindError("no candidate could be scored: each lacks what a reward needs (docs/guide/rewards.md)")


class _Writer:
    """An Arrow file that grows beside its place."""

    def __init__(self, beside: Path, schema: pa.Schema) -> None:
        self.beside, self.schema = beside, schema
        self._file: Any = None
        self._rows: Any = None

    def write(self, columns: Columns) -> None:
        self._try(lambda: self._opened().write_table(pa.table(columns, schema=self.schema)))

    def finish(self, file: Path) -> None:
        """Move it to its place, with all rows that there are."""

        def end() -> None:
            self._opened().close()
            self._file.close()
            self.beside.replace(file)

        self._try(end)

    def drop(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            self.beside.unlink()

    def _opened(self) -> Any:
        if self._rows is None:
            self.beside.parent.mkdir(parents=True, exist_ok=True)
            self._file = pa.OSFile(str(self.beside), "wb")
            self._rows = pa.ipc.new_stream(self._file, self.schema)
        return self._rows

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, pa.ArrowException) as error:
            self.drop()
            raise RewindError(f"what is learned from cannot be written to {self.beside.parent}: {error}") from error


def _parts(things: Iterable[Thing]) -> Iterator[list[Thing]]:
    rest = iter(things)
    while part := list(islice(rest, AT_ONCE)):
        yield part
