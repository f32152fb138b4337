"""Tables of `datasets`: Parquet, folders of `save_to_disk`, data sets of the Hub; they stay on disk and are mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from rl.data.lazy import Lazy
from rl.errors import RewindError
from rl.picture_keys import content_key, content_of, key_of, stamp
from rl.pictures import EncodedPicture
from rl.stored import StoredPicture
from rl.wholeness import HEAD, TAIL, ends_are_whole

STATE, SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` writes into the folder of a table, and into that of several splits."""


@dataclass(frozen=True, slots=True, eq=False)
class CellPicture(StoredPicture):
    """A picture whose file stands as bytes in a cell of a table, which is read when somebody looks.

    `table` stands for the table's files while nobody changes them (`picture_keys.stamp`); None if it lies in none.
    """

    column: pa.ChunkedArray
    row: int
    view: int | None
    name: str
    table: bytes | None = None

    def _bytes(self) -> pa.Scalar:
        cell = self.column[self.row]
        cell = cell if self.view is None else cell[self.view]
        return cell["bytes"] if pa.types.is_struct(cell.type) else cell

    @property
    def image(self) -> Image.Image:
        """The decoded picture, RGB."""
        return EncodedPicture(self._bytes().as_py(), self.name).image

    def check(self, decode: bool) -> None:
        """See that the bytes are those of a whole file: by decoding them, or by their ends where these tell.

        Raises:
            RewindError: they are not.
        """
        buffer = self._bytes().as_buffer()
        head, tail = buffer[:HEAD].to_pybytes(), buffer[max(buffer.size - TAIL, 0) :].to_pybytes()
        if decode or not ends_are_whole(head, tail, buffer.size):
            _ = self.image


@stamp.register
def _(picture: CellPicture) -> bytes | None:
    if picture.table is None:
        return content_key(picture)
    return key_of(b"cell", picture.table, picture.name.encode(), repr(picture.view).encode())


@content_key.register
def _(picture: CellPicture) -> bytes:
    return content_of(picture._bytes().as_buffer())


class TableRows(Lazy[Any]):
    """Rows of an Arrow table as entries; bytes of pictures stay in the table.

    Args:
        table: the rows.
        classes: the names behind the numbers of columns.
        name: of the data set, for messages.
        files: that the table is mapped from.
    """

    def __init__(self, table: pa.Table, classes: Mapping[str, Any], name: str, files: Sequence[str] = ()) -> None:
        each = [stamp(file) for file in files]
        known = [one for one in each if one is not None]
        self._stamp = key_of(*known) if known and len(known) == len(each) else None
        self._columns = {column: table.column(column) for column in table.column_names}
        self._pictures = {column for column, values in self._columns.items() if _holds_pictures(values.type)}
        self._classes, self._name, self._length = classes, name, table.num_rows

    def __len__(self) -> int:
        return self._length

    def make(self, number: int) -> Any:
        return {column: self._value(column, number) for column in self._columns}

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._columns)

    def _value(self, column: str, number: int) -> Any:
        cell = self._columns[column][number]
        if column not in self._pictures:
            value = cell.as_py()
            classes = self._classes.get(column)
            return value if classes is None or value is None else classes.int2str(value)
        if not pa.types.is_list(cell.type):
            return self._picture(cell, column, number, None)
        return [self._picture(cell[view], column, number, view) for view in range(len(cell))] if cell.is_valid else None

    def _picture(self, cell: pa.Scalar, column: str, number: int, view: int | None) -> Any:
        """A picture in a cell, the path of one, or None."""
        content = cell
        if pa.types.is_struct(cell.type):
            content = cell["bytes"] if cell.is_valid else None
            if content is None or not content.is_valid:
                return cell["path"].as_py() if cell.is_valid and "path" in cell.type.names else None
        if not content.is_valid:
            return None
        told = f"{self._name}, row {number}, column '{column}'"
        return CellPicture(self._columns[column], number, view, told, self._stamp)


def _holds_pictures(kind: pa.DataType) -> bool:
    """Whether cells hold the bytes of files, as they are or as `datasets` writes pictures: {bytes, path}."""
    if pa.types.is_list(kind):
        return _holds_pictures(kind.value_type)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (pa.types.is_struct(kind) and "bytes" in {field.name for field in kind})
    )


def is_table(path: Path) -> bool:
    """Whether a file is Parquet, or a folder one of `save_to_disk` or one with Parquet files."""
    if path.is_file():
        return path.suffix == ".parquet"
    return (path / STATE).is_file() or (path / SPLITS).is_file() or bool(_parquet(path))


def _parquet(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])


def check_all_there(folder: Path) -> None:
    """See that all shards of triplets are in a folder of them (`rl.data.parquet_files`); of others' tables parts do.

    Raises:
        RewindError: the run that wrote them was stopped before the last one.
    """
    files = sorted(folder.glob("triplets-[0-9]*-of-[0-9]*.parquet"))
    if files and (count := int(files[-1].stem.rpartition("-")[2])) != len(files):
        raise RewindError(
            f"{folder} holds {len(files)} of {count} shards: the run that wrote it did not end, --resume it first"
        )


def table_rows(path: Path, split: str | None) -> TableRows:
    """The rows of a table on this machine. Parquet is brought into Arrow once, in the cache of `datasets`.

    Raises:
        RewindError: it cannot be read, or has no such split.
    """
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns

    check_all_there(path)

    def load() -> Any:
        if path.is_dir() and not _parquet(path):
            return datasets.load_from_disk(str(path))
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=str(path))
        # Splits as the files' names say; what else lies there (lists, notes) is no table.
        found = DataFilesDict.from_patterns(get_data_patterns(str(path)), str(path), allowed_extensions=[".parquet"])
        return datasets.load_dataset("parquet", data_files={str(split): [*files] for split, files in found.items()})

    return _rows(load, str(path), split)


def hub_rows(name: str, split: str | None) -> TableRows:
    """The rows of a data set of the Hub, `owner/name` or `owner/name@revision`.

    Raises:
        RewindError: it is neither in the cache nor can be reached, or has no such split.
    """
    import datasets

    repository, _, revision = name.partition("@")
    return _rows(lambda: datasets.load_dataset(repository, revision=revision or None), name, split)


def _rows(load: Any, name: str, split: str | None) -> TableRows:
    import datasets

    try:
        found = load()
    except Exception as error:  # the library raises its own, pyarrow's and the network's
        told = " ".join(str(error).split())[:200]
        raise RewindError(
            f"{name} cannot be read as a data set ({type(error).__name__}: {told}): give a file, a folder of "
            "`save_to_disk`, or a Hub id that is in the cache or can be reached"
        ) from error
    if isinstance(found, dict):
        split = split or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else None)
        if split not in found:
            wanted = "give --data_split" if split is None else f"there is no split '{split}'"
            raise RewindError(f"{name}: {wanted}: it has {', '.join(map(str, found))}")
        found = found[split]
    elif split is not None:
        raise RewindError(f"{name} is one table without splits: leave --data_split out")
    classes = {key: kind for key, kind in found.features.items() if isinstance(kind, datasets.ClassLabel)}
    if found._indices is not None:  # rows of a table in another order than theirs
        found = found.flatten_indices()
    return TableRows(found.data.table, classes, name, [file["filename"] for file in found.cache_files])
