"""Some entries of a data set, where only their numbers say which are wanted: for data that is streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rl.data.entry_stream import entries_of
from rl.data.formats.table import TRIED, Options, open_entries
from rl.data.left_out import LeftOut
from rl.data.mixture import is_mixture
from rl.data.parquet_files import plain_shards, rows_of
from rl.data.places import roots_of
from rl.data.triplet_files import CHECKS, _names, _Reader
from rl.errors import RewindError
from rl.paths import as_written, expanded
from rl.triplets import Triplet

STREAMED = (".json", ".jsonl", ".ndjson")
"""Endings of files whose entries, if they have AURORA's keys, are never held all at once."""
Some = Callable[[Mapping[int, Any]], tuple[dict[int, Triplet], list[LeftOut]]]


def streamed(
    given: str | Path, options: Options, check_pictures: str | None = None
) -> tuple[Callable[[], Iterable[Any]], Some]:
    """A data set as two functions: its entries, from the first one on each time, and a reader of some of them.

    That takes entries by number and gives, as `read_triplets` does, the triplets of those that can be used, and what
    is left out. Pictures are decoded to see that they are whole, unless `check_pictures` is "ends".

    Raises:
        RewindError: a mixture of data sets, or what `read_triplets` says of one that cannot be read.
    """
    if check_pictures not in (None, *CHECKS):
        raise RewindError(f"--check_pictures is one of {', '.join(CHECKS)}, not '{check_pictures}'")
    if is_mixture(given):
        raise RewindError(f"{given} is a mixture: choose from one data set at a time")
    file = expanded(str(given))
    plain = options.format in (None, "plain") and not options.columns and options.split is None
    if plain and file.suffix.lower() in STREAMED:
        folder, read = as_written(file).parent, lambda: entries_of(file)
    elif plain and (shards := plain_shards(file)):
        folder, read = as_written(file).parent, lambda: rows_of(shards)
    else:
        rows, folder = open_entries(str(given), options)
        read = lambda: iter(rows)  # noqa: E731
    roots = roots_of(file, folder, options.image_root, _names(list(islice(read(), TRIED))))

    def some(raw: Mapping[int, Any]) -> tuple[dict[int, Triplet], list[LeftOut]]:
        numbers = list(raw)
        reader = _Reader(list(raw.values()), roots, named=True, with_targets=False)
        reader.look(check_pictures != "ends")
        left = [
            LeftOut(str(file), numbers[n], one.key, one.reason, f"{file}, triplet {numbers[n]}: {one}")
            for n, one in sorted(reader.faults.items())
        ]
        return {numbers[n]: reader.triplet(n) for n in reader.good}, left

    return read, some
