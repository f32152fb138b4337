"""The table of formats: from what the user names to entries with AURORA's keys, found out by what lies there."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rl.data.entries import JsonRows, read_entries, read_text
from rl.data.formats.arrow import hub_rows, is_table, table_rows
from rl.data.formats.dialect import Dialect
from rl.data.formats.epic import EPIC
from rl.data.formats.function import function_entries, is_function
from rl.data.formats.instructpix2pix import instructpix2pix_entries, is_instructpix2pix
from rl.data.formats.names import renamed, renaming
from rl.data.formats.pico_banana import PICO_BANANA
from rl.data.formats.something import SOMETHING
from rl.data.lazy import Lazy
from rl.errors import RewindError
from rl.paths import as_written, expanded

TRIED = 20
"""Entries by which it is found out what a data set is, and where its pictures lie."""
PLAIN, PAIRS = "plain", "instructpix2pix"
DIALECTS: dict[str, Dialect] = {one.name: one for one in (SOMETHING, EPIC, PICO_BANANA)}
FORMATS = (PLAIN, *DIALECTS, PAIRS)
"""What `--format` names: AURORA's keys (or columns that mean them), the dialects, and InstructPix2Pix's folders."""
LISTS = ("metadata.jsonl", "metadata.csv", "train.json", "test.json", "triplets.json", "pairs.json")
"""What a folder is read by, the first that is there."""
FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".yaml", ".yml")
"""Endings of files; a name with another one that is not there may be that of a data set of the Hub."""
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?")


@dataclass(frozen=True)
class Options:
    """How a data set is to be read, where it does not say so itself."""

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    image_root: str | Path | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise RewindError(f"--format: there is no '{self.format}': it is one of {', '.join(FORMATS)}")


class Mapped(Lazy[Any]):
    """The first `count` entries of something under other names, given them when asked for."""

    def __init__(self, rows: Sequence[Any], names: Mapping[str, str], count: int | None) -> None:
        self._rows, self._names = rows, names
        self._count = len(rows) if count is None else min(count, len(rows))

    def __len__(self) -> int:
        return self._count

    def make(self, number: int) -> Any:
        entry = self._rows[number]
        return renamed(entry, self._names) if isinstance(entry, Mapping) else entry


def _a_table(path: Path) -> bool:
    return path.is_dir() and is_table(path)


def open_entries(given: str, options: Options, limit: int | None = None) -> tuple[Sequence[Any], Path]:
    """The entries of a data set, or the first `limit` ones, and the folder that its paths start from.

    Raises:
        RewindError: there is no such thing, it cannot be read, or an option that does not go with it.
    """
    path = expanded(given)
    if is_function(given) and not path.exists():
        _no_split(options, given)
        rows, folder = function_entries(given)
        return _lazily(rows, given, options, limit), folder
    if options.format == PAIRS or (path.is_dir() and options.format is None and is_instructpix2pix(path)):
        if not path.is_dir():
            raise RewindError(f"--format {PAIRS} is of a folder, and {given} is none")
        rows = _kept(instructpix2pix_entries(path), path, path, options, limit)
        if not len(rows):
            raise RewindError(f"the folder {path} holds no pair of pictures beside a prompt.json: check the path")
        return rows, path
    if path.is_dir() and not is_table(path):
        listed = next((path / name for name in LISTS if (path / name).is_file()), None)
        if listed is None:
            inside = next((f"; {one} holds one: give that" for one in sorted(path.iterdir()) if _a_table(one)), "")
            raise RewindError(
                f"the folder {path} holds no data set that is known: none of {', '.join(LISTS)}, no "
                f"Parquet, no `save_to_disk`, no prompt.json{inside}"
            )
        path = listed
    if path.exists() and is_table(path):
        return _lazily(table_rows(path, options.split), given, options, limit), path.parent
    if not path.exists() and path.suffix.lower() not in FILES and _HUB_ID.fullmatch(given):
        return _lazily(hub_rows(given, options.split), given, options, limit), Path.cwd()
    entries = _csv(path) if path.suffix.lower() in (".csv", ".tsv") else read_entries(path)
    return _kept(entries, path, as_written(path).parent, options, limit), as_written(path).parent


def _no_split(options: Options, what: object) -> None:
    if options.split is not None:
        raise RewindError(f"--data_split is of tables with several splits, and {what} has none: leave it out")


def _lazily(rows: Sequence[Any], what: str, options: Options, limit: int | None) -> Sequence[Any]:
    """Rows that stay where they are, under our names.

    Raises:
        RewindError: an option that does not go with them.
    """
    if not len(rows):
        raise RewindError(f"{what} holds no rows")
    if options.format in DIALECTS:
        raise RewindError(f"--format {options.format} is of JSON and CSV files, not of {what}: map its --columns")
    return Mapped(rows, renaming(_keys(rows[:TRIED]), options.columns, what), limit)


def _kept(entries: Iterable[Any], path: Path, folder: Path, options: Options, limit: int | None) -> Sequence[Any]:
    """Entries that are read once and kept in few bytes, in our words."""
    _no_split(options, path)
    dialect, entries = _dialect(entries, options)
    if dialect is not None:
        entries = _converted(entries, dialect, folder, options.image_root)
    first, entries = _peeked(entries)
    names = renaming(_keys(first), options.columns, str(path), known=dialect is None)
    return JsonRows(islice((renamed(one, names) if isinstance(one, Mapping) else one for one in entries), limit))


def _peeked(entries: Iterable[Any]) -> tuple[list[Any], Iterator[Any]]:
    """The first entries, and all of them."""
    rest = iter(entries)
    first = list(islice(rest, TRIED))
    return first, chain(first, rest)


def _keys(entries: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(str(key) for one in entries if isinstance(one, Mapping) for key in one))


def _dialect(entries: Iterable[Any], options: Options) -> tuple[Dialect | None, Iterable[Any]]:
    """The dialect in which entries are written, if any, and they themselves."""
    if options.format is not None:
        return DIALECTS.get(options.format), entries
    first, entries = _peeked(entries)
    mappings = [one for one in first if isinstance(one, Mapping)]
    fitting = (one for one in DIALECTS.values() if any(one.fits(entry) for entry in mappings))
    return next(fitting, None), entries


def _converted(raw: Iterable[Any], dialect: Dialect, folder: Path, image_root: str | Path | None) -> Iterator[Any]:
    """Entries in AURORA's keys; what is no mapping is kept, to be left out by its number."""
    first, raw = _peeked(raw)
    places = dialect.places([one for one in first if isinstance(one, Mapping)], folder, image_root)
    for entry in raw:
        if isinstance(entry, Mapping):
            yield from dialect.entries(entry, places)
        else:
            yield entry


def _csv(path: Path) -> Iterator[Any]:
    """Rows of a CSV or TSV file; an empty cell is None.

    Raises:
        RewindError: it cannot be read, or holds no rows.
    """
    text = read_text(path)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        count = 0
        for row in rows:
            count += 1
            yield {key: value or None for key, value in row.items() if key is not None} | _score(row)
    except csv.Error as error:
        raise RewindError(f"{path} is no CSV that can be read ({error})") from error
    if not count:
        raise RewindError(f"{path} holds no rows below its first line, which names the columns")


def _score(row: Mapping[str, Any]) -> dict[str, float]:
    """The one column that is a number."""
    try:
        return {"score": float(row["score"])}
    except (KeyError, TypeError, ValueError):
        return {}
