"""Sequences whose entries are made when looked at: numbers and slices as a list has them, in every class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rl.data.entries import JsonRows
from rl.data.formats.arrow import TableRows
from rl.data.formats.function import _Rows
from rl.data.formats.table import Mapped
from rl.data.lazy import Lazy

ROWS = [{"a": number} for number in range(4)]


@pytest.mark.parametrize(
    "rows",
    [JsonRows(ROWS), TableRows(pa.Table.from_pylist(ROWS), {}, "rows"), Mapped(ROWS, {}, None), _Rows(ROWS)],
    ids=lambda rows: type(rows).__name__,
)
def test_numbers_and_slices_are_those_of_a_list(rows: Lazy[Any]) -> None:
    assert list(rows) == ROWS
    for number in (0, 3, -1, -4):
        assert rows[number] == rows[np.int64(number)] == ROWS[number]  # type: ignore[call-overload]
    for part in (slice(None), slice(1, 3), slice(None, None, -1), slice(-2, 99), slice(2, 1), slice(0, 4, 3)):
        assert rows[part] == ROWS[part]
    for number in (4, -5):
        with pytest.raises(IndexError):
            rows[number]


def test_nothing_is_made_before_somebody_looks() -> None:
    made: list[int] = []

    class Noted(Lazy[int]):
        def __len__(self) -> int:
            return 1_000_000_000

        def make(self, number: int) -> int:
            made.append(number)
            return number

    assert Noted()[-2:] == [999_999_998, 999_999_999]
    assert made == [999_999_998, 999_999_999]
