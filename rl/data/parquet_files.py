"""Triplets as Parquet: written shard by shard, each whole or absent, and read row by row in bounded memory.

A table holds what a JSON list of the same triplets would: paths of pictures, from the folder in which that of the
shards lies, and a column for each key; what a JSON entry lacks is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.columns import plain_columns
from rl.data.formats.arrow import check_all_there
from rl.data.triplet_files import Written
from rl.errors import RewindError
from rl.running.files import partial
from rl.triplets import Triplet

FOLDER = "triplets"
ROWS = 4096
"""Rows of a shard."""


def write_parquet(triplets: Sequence[Triplet], folder: Path, *, link: bool = False, rows: int = ROWS) -> Path:
    """Write triplets as `folder/triplets/triplets-NUMBER-of-COUNT.parquet`, their pictures as `write_triplets` does.

    A shard takes its place when it and its pictures are written. One that is there with the same rows is left as it
    is, but for pictures that are gone, so that a run that was killed goes on behind the last whole one.

    Returns:
        The folder of the shards.

    Raises:
        RewindError: a column that has no one type.
    """
    written, shards = Written(triplets, folder, link), folder / FOLDER
    shards.mkdir(exist_ok=True)
    parts = [range(start, min(start + rows, len(triplets))) for start in range(0, len(triplets), rows)]
    schema = _schema([written.entry(number) for number in part] for part in parts)
    files = [shards / f"{FOLDER}-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        table = _table([written.entry(number) for number in part], schema)
        there = _holds(file, table)
        for number in part:
            written.write(number, only_missing=there)
        if not there:
            _write_table(table, file)
    for other in {*shards.glob(f"*{FOLDER}-*.parquet*")} - {*files}:  # of a run that this one replaces, or half a shard
        if other.is_file():
            other.unlink()
    return shards


def check_columns(triplets: Sequence[Triplet]) -> None:
    """See that columns of the user's have one type each, before what takes hours.

    Raises:
        RewindError: one that has not.
    """
    starts = range(0, len(triplets), ROWS)
    table = None
    for start in starts:
        rows = [plain_columns(triplet.more) for triplet in triplets[start : start + ROWS]]
        table = _schema([rows], table)
        _table(rows, table)


def _schema(parts: Iterable[Sequence[dict[str, Any]]], found: pa.Schema | None = None) -> pa.Schema:
    """The columns of all rows with their types, those that are `found` already among them; shards of one data set must
    agree in them.
    """
    found = found or pa.schema([])
    for part in parts:
        columns: dict[str, list[Any]] = {}
        for entry in part:
            for name, value in entry.items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            try:
                here = pa.schema([(name, pa.array(values).type)])
                found = pa.unify_schemas([found, here], promote_options="permissive")
            except (pa.ArrowException, OverflowError) as error:
                raise _refused(error, f"the column '{name}'") from error
    return found


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema)
    except (pa.ArrowException, OverflowError) as error:
        raise _refused(error, "a column") from error


def _refused(error: Exception, column: str) -> RewindError:
    told = " ".join(str(error).split())[:200]
    return RewindError(
        f"{column} has values of several types, or too large ones, which Parquet does not hold ({told}): leave "
        "--parquet out, or make them alike"
    )


def _holds(file: Path, table: pa.Table) -> bool:
    """Whether a file is there, whole, and holds just these rows."""
    try:
        return bool(pq.read_table(file).equals(table))
    except (OSError, pa.ArrowException):
        return False


def _write_table(table: pa.Table, file: Path) -> None:
    beside = partial(file)
    try:
        pq.write_table(table, beside)
        beside.replace(file)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise
        raise _refused(error, "a column") from error


def plain_shards(path: Path) -> list[Path] | None:
    """The files of a folder that `write_parquet` wrote, or a Parquet file that is no more than its columns.

    None if it is something else, or of which `datasets` has more to say: several splits, pictures as bytes, names of
    classes, other names of columns.

    Raises:
        RewindError: a folder whose run was stopped before it had written all shards.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not files or (path.is_dir() and any(not file.name.startswith(f"{FOLDER}-") for file in files)):
        return None
    check_all_there(path)
    try:
        schemas = [pq.read_schema(file) for file in files]
    except (OSError, pa.ArrowException):
        return None
    plain = all("input" in one.names and b"huggingface" not in (one.metadata or {}) for one in schemas)
    return files if plain and all(_is_plain(field.type) for one in schemas for field in one) else None


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_plain(kind.value_type)
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def rows_of(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files as entries, some at a time.

    Raises:
        RewindError: a file that cannot be read.
    """
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise RewindError(f"{file} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
