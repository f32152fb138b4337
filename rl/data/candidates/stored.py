"""Reading a store of scored candidates without having all of it in memory: columns as needed, a row group at a time.

What is kept of a candidate are the numbers of its draw, of itself and of its place (20 bytes), and of a score a key and
a number; ids and log-probabilities are read when a draw is looked at.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl.errors import RewindError

logger = logging.getLogger("rl")
Draw = tuple[int, int, str]
"""Seed, step and prompt: what candidates were drawn together under."""
ROW_GROUPS = 4
"""Row groups that are held at once, at least: two for each process, whose draws take turns in the order of triplets."""


class Parts:
    """The Parquet files of a store; a damaged one is left out with a warning.

    Args:
        files: in order.
        schema: the columns; `later` are those that a file may lack.
        what: rows are, for messages.

    Raises:
        RewindError: a file with other columns.
        FileNotFoundError: a file that is there no longer.
    """

    def __init__(self, files: Sequence[Path], schema: pa.Schema, later: Sequence[str], what: str) -> None:
        self.schema, self.later = schema, frozenset(later)
        self.files, self.groups, self.rows = list[Path](), list[int](), list[int]()
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    there, groups, rows = opened.schema_arrow, opened.num_row_groups, opened.metadata.num_rows
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, FileNotFoundError) and not file.is_symlink():
                    raise
                logger.warning("%s is damaged and left out: %s", file, " ".join(str(error).split())[:200])
                continue
            wanted = [field for field in schema if field.name not in self.later or field.name in there.names]
            if not there.equals(pa.schema(wanted)):
                raise RewindError(f"{file} has other columns than scored {what}: move it out of the folder")
            self.files.append(file)
            self.groups.append(groups)
            self.rows.append(rows)
        self.cached: Callable[[int, int], pa.Table] = lru_cache(
            max(ROW_GROUPS, 2 * int(os.environ.get("WORLD_SIZE", "1")))
        )(self.read)

    def read(self, part: int, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns (all if none are named) of a row group; those that a file lacks are null."""
        names = list(columns or self.schema.names)
        try:
            with pq.ParquetFile(self.files[part]) as opened:
                there = set(opened.schema_arrow.names)
                table = opened.read_row_group(group, [name for name in names if name in there])
        except (OSError, pa.ArrowException) as error:
            raise RewindError(f"{self.files[part]} cannot be read any more: {error}") from error
        for name in names:
            if name not in there:
                table = table.append_column(name, pa.nulls(len(table), self.schema.field(name).type))
        return table.select(names).combine_chunks()

    def scan(self, columns: Sequence[str]) -> Iterator[tuple[int, int, pa.Table]]:
        """Number of part and row group, and columns of all rows, in order."""
        for part, groups in enumerate(self.groups):
            for group in range(groups):
                yield part, group, self.read(part, group, columns)


class Index:
    """Where the candidates of each draw are; of the same one only the last.

    Attributes:
        draws: seed, step and prompt of each, in the order of first appearance.
    """

    def __init__(self, parts: Parts) -> None:
        numbers: dict[Draw, int] = {}
        draw, candidate, places = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        for part, group, table in parts.scan(("seed", "step", "prompt", "candidate")):
            keys = zip(*(table.column(name).to_pylist() for name in ("seed", "step", "prompt")), strict=True)
            draw.append(np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int32, len(table)))
            candidate.append(table.column("candidate").to_numpy().astype(np.int32))
            rows = np.arange(len(table), dtype=np.int32)
            places.append(np.stack([np.full_like(rows, part), np.full_like(rows, group), rows], 1))
        self.draws = list(numbers)
        of, number = _joined(draw, (0,)), _joined(candidate, (0,))
        order = np.lexsort((np.arange(len(of)), number, of))  # by draw, candidate and appearance
        of, number = of[order], number[order]
        last = np.append((of[1:] != of[:-1]) | (number[1:] != number[:-1]), True) if len(of) else np.zeros(0, bool)
        self.places = _joined(places, (0, 3))[order][last]
        self.numbers = number[last]
        self.begins = np.searchsorted(of[last], np.arange(len(self.draws) + 1))

    def of(self, draw: int) -> list[tuple[int, int, int]]:
        """Part, row group and row of each candidate of a draw, in the order of their numbers."""
        return [tuple(place) for place in self.places[self.begins[draw] : self.begins[draw + 1]].tolist()]


class KnownScores(Mapping[bytes, "dict[str, float | None]"]):
    """Scores by the name of the reward for candidates by their key, 16 bytes; 24 bytes and 9 a reward for each."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._words = np.zeros((0, 2), np.uint64)
        self._new: list[tuple[bytes, dict[str, float | None]]] = []
        self._scores = np.zeros((0, 0))
        self._has = np.zeros((0, 0), bool)

    def add(self, key: bytes, scores: Mapping[str, float | None]) -> None:
        """Take in the scores of a candidate; those of the same reward that it has are replaced."""
        self._new.append((key, dict(scores)))
        if len(self._new) >= min(1 << 16, max(1 << 12, len(self._words) // 4)):  # some hundred bytes each until then
            self.settle()

    def settle(self) -> None:
        """Bring what was added into order."""
        new, self._new = self._new, []
        if not new:
            return
        for _, scores in new:
            for name in scores:
                self._places.setdefault(name, len(self._places))
        width = len(self._places)
        words = np.frombuffer(b"".join(key for key, _ in new), np.uint64).reshape(-1, 2)
        score, has = np.full((len(new), width), np.nan), np.zeros((len(new), width), bool)
        for row, (_, scores) in enumerate(new):
            for name, value in scores.items():
                score[row, self._places[name]] = np.nan if value is None else value
                has[row, self._places[name]] = True
        grown = [(0, 0), (0, width - self._scores.shape[1])]
        words = np.concatenate([self._words, words])
        score = np.concatenate([np.pad(self._scores, grown, constant_values=np.nan), score])
        has = np.concatenate([np.pad(self._has, grown), has])
        order = np.lexsort((np.arange(len(words)), words[:, 1], words[:, 0]))
        words, score, has = words[order], score[order], has[order]
        first = np.append(True, (words[1:] != words[:-1]).any(1))
        number = np.cumsum(first) - 1
        self._words = words[first]
        self._scores, self._has = np.full((len(self._words), width), np.nan), np.zeros((len(self._words), width), bool)
        for column in range(width):  # in order of appearance, so the last one stays
            rows = has[:, column]
            self._scores[number[rows], column] = score[rows, column]
            self._has[number[rows], column] = True

    def __len__(self) -> int:
        self.settle()
        return len(self._words)

    def __iter__(self) -> Iterator[bytes]:
        self.settle()
        return (row.tobytes() for row in self._words)

    def __getitem__(self, key: bytes) -> dict[str, float | None]:
        self.settle()
        first, second = np.frombuffer(key, np.uint64)
        place = int(np.searchsorted(self._words[:, 0], first))
        while place < len(self._words) and self._words[place, 0] == first:
            if self._words[place, 1] == second:
                values, has = self._scores[place], self._has[place]
                known = ((name, values[i]) for name, i in self._places.items() if has[i])
                return {name: None if np.isnan(value) else float(value) for name, value in known}
            place += 1
        raise KeyError(key)


def row_of(table: pa.Table, row: int) -> dict[str, Any]:
    """A row as a dict, its ids int64 and log-probabilities float32 as arrays of their own."""
    arrays = {"ids": np.int64, "logprobs": np.float32}
    found = {name: table.column(name)[row].as_py() for name in table.column_names if name not in arrays}
    for name, dtype in arrays.items():
        found[name] = np.array(table.column(name)[row].values.to_numpy(zero_copy_only=False), dtype=dtype)
    return found


def _joined(parts: Sequence[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty, np.int32)
