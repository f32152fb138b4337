"""Reranking a data set: whatever interrupts it, the file ends up the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rl import rerank
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.running.shards import shard_of
from rl.search.best_of_n import Reranked
from rl.triplets import Triplet
from trainers.rerank.recipe import CANDIDATES_FILE, complete_triplets, rerank_all, summary


def test_an_interrupted_run_ends_with_the_same_file(tiny: ChameleonVLM, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    triplets = [Triplet(picture, "remove all rings") for picture in pictures]
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    asked: list[int] = []

    def best_of(part: Sequence[Triplet]) -> list[Reranked]:
        asked.append(len(part))
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        return rerank(fdm, idm, [t.source for t in part], [t.action for t in part], 3)

    def go(folder: Path) -> bytes:
        folder.mkdir(exist_ok=True)
        rerank_all(folder, triplets, range(5), best_of, block=2)
        return (folder / CANDIDATES_FILE).read_bytes()

    stop_at = 0
    whole = go(tmp_path / "whole")
    assert asked == [2, 2, 1]
    assert summary(tmp_path / "whole", triplets, tiny).startswith("15 candidates for 5 sources; look at")
    asked, stop_at = [], 2
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped")
    assert complete_triplets(tmp_path / "stopped" / CANDIDATES_FILE) == [0, 1]
    asked, stop_at = [], 0
    assert go(tmp_path / "stopped") == whole
    assert asked == [2, 1]  # the first block is not drawn again
    lines = whole.splitlines(keepends=True)
    for left in (b"".join(lines[:4]), b"".join(lines[:8]) + lines[8][:25], b"".join(lines[:2])):
        (tmp_path / "stopped" / CANDIDATES_FILE).write_bytes(left)
        assert go(tmp_path / "stopped") == whole
    assert go(tmp_path / "stopped") == whole  # nothing left to do
    (tmp_path / "stopped" / CANDIDATES_FILE).write_bytes(lines[0][:9] + b"\n" + lines[1])
    with pytest.raises(RewindError, match="line 1 cannot be read"):
        go(tmp_path / "stopped")


def test_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert shard_of(None) is None
    assert shard_of("1/4") == (1, 4)
    for wrong in ("4/4", "1", "a/b", "-1/2"):
        with pytest.raises(RewindError, match="I/N"):
            shard_of(wrong)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert shard_of(None) == (1, 2)
    with pytest.raises(RewindError, match=r"2 launched processes share .* leave --shard 0/2 out"):
        shard_of("0/2")
