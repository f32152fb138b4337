"""Bytes in a temporary file: the same ones, in memory while they are few, and a sentence where no file can be had."""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.data.entries import JsonRows
from rl.errors import RewindError
from rl.spilled import Spilled, SpilledArrays

ENTRIES = [{"instruction": "move it", "input": f"{n}.png"} for n in range(50)]


def no_file(**_: Any) -> Any:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("few", [0, 100, 10**6])
def test_what_was_added_is_read(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.spilled.IN_MEMORY", few)
    rows = JsonRows(ENTRIES)
    assert list(rows) == ENTRIES == list(pickle.loads(pickle.dumps(rows)))
    assert isinstance(rows._content, bytearray if few == 10**6 else mmap.mmap)
    kept, arrays = SpilledArrays(), [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.int32), np.arange(90)]
    for array in arrays:
        kept.append(array)
    assert all(np.array_equal(mine, own) for mine, own in zip(kept.arrays(), arrays, strict=True))
    assert len(Spilled().mapped()) == 0


def test_short_lists_take_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture of a thousand of them has no thousand descriptors open."""
    before = len([*Path("/proc/self/fd").iterdir()])
    many = [JsonRows(ENTRIES) for _ in range(20)]
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 1
    monkeypatch.setattr("tempfile.TemporaryFile", no_file)
    assert list(JsonRows(ENTRIES)) == ENTRIES == list(many[0])
    monkeypatch.setattr("rl.spilled.IN_MEMORY", 100)
    with pytest.raises(RewindError, match=r"temporary file \(Too many open files\): make room in .*TMPDIR"):
        JsonRows(ENTRIES)
