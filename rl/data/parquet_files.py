"""Triplets as Parquet: written shard by shard, each whole or absent, and read row by row in bounded memory.

A table holds what a JSON list of the same triplets would: paths of pictures, from the folder in which that of the
shards lies, and a column for each key; what a JSON entry lacks is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.triplet_files import Written
from rl.errors import RewindError
from rl.running.files import partial
from rl.triplets import Triplet

FOLDER = "triplets"
ROWS = 4096
"""Rows of a shard."""


def write_parquet(triplets: Sequence[Triplet], folder: Path, *, link: bool = False, rows: int = ROWS) -> Path:
    """Write triplets as `folder/triplets/triplets-NUMBER.parquet`, their pictures as `write_triplets` does.

    A shard takes its place when it and its pictures are written. One that is there with the same rows is left as it
    is, so that a run that was killed goes on behind the last whole one.

    Returns:
        The folder of the shards.

    Raises:
        RewindError: a column that has no one type.
    """
    written, shards = Written(triplets, folder, link), folder / FOLDER
    shards.mkdir(exist_ok=True)
    parts = [range(start, min(start + rows, len(triplets))) for start in range(0, len(triplets), rows)]
    schema = _schema(written, parts)
    files = [shards / f"triplets-{number:05d}.parquet" for number in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        table = pa.Table.from_pylist([written.entry(number) for number in part], schema)
        if not _holds(file, table):
            for number in part:
                written.write(number)
            _write_table(table, file)
    for other in {*shards.iterdir()} - {*files}:  # of a run that this one replaces, or half a shard of a killed one
        other.unlink()
    return shards


def _schema(written: Written, parts: Sequence[range]) -> pa.Schema:
    """The columns of all rows with their types; shards of one data set must agree in them."""
    found = pa.schema([])
    for part in parts:
        columns: dict[str, list[Any]] = {}
        for entry in map(written.entry, part):
            for name, value in entry.items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            try:
                here = pa.schema([(name, pa.array(values).type)])
                found = pa.unify_schemas([found, here], promote_options="permissive")
            except pa.ArrowException as error:
                told = " ".join(str(error).split())[:200]
                raise RewindError(
                    f"the column '{name}' has values of several types, which Parquet does not hold ({told}): leave "
                    "--parquet out, or make them alike"
                ) from error
    return found


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
        raise RewindError(f"Parquet does not hold these columns ({error}): leave --parquet out") from error


def plain_shards(path: Path) -> list[Path] | None:
    """The files of a folder that `write_parquet` wrote, or a Parquet file that is no more than its columns.

    None if it is something else, or of which `datasets` has more to say: several splits, pictures as bytes, names of
    classes, other names of columns.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not files or (path.is_dir() and any(not file.name.startswith(f"{FOLDER}-") for file in files)):
        return None
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
