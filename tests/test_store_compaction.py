"""Many small parts of a store become few big ones: readers see the same before, after and wherever a kill ends it."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.data.candidates import part_folder
from rl.data.candidates.part_folder import PartFolder
from rl.data.candidates.sentence_store import SCHEMA as SENTENCES
from rl.data.candidates.sentence_store import SentenceStore
from rl.data.candidates.store import CandidateStore, Group
from rl.data.candidates.stored import Parts
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.running import lock
from rl.running.run_folder import CONFIG_FILE
from rl.triplets import Candidate, Scored, Triplet
from trainers.common import candidates

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
TRIPLETS = [Triplet(picture, "remove all rings", more={"n": n} if n else {}) for n, picture in enumerate(PICTURES)]


def append(vlm: ChameleonVLM, folder: Path, seed: int, step: int, shift: float = 0.0, name: str = "a") -> None:
    """A part of its own with two candidates of each triplet, as a run that goes on begins one."""
    groups: list[Group] = []
    for place, triplet in enumerate(TRIPLETS):
        ids = [vlm.layout.image_ids_V[[seed, step, place, number]].numpy() for number in range(2)]
        scores = [100.0 * seed + 10 * step + number + shift for number in range(2)]
        group = [
            Scored(Candidate(i, np.zeros(4, np.float32), vlm), {name: s}, s) for i, s in zip(ids, scores, strict=True)
        ]
        groups.append((triplet, group))
    CandidateStore(folder).append(groups, seed=seed, step=step)


def seen(vlm: ChameleonVLM, folder: Path) -> list[Any]:
    """What every reader finds."""
    store = CandidateStore(folder)
    groups, known = store.groups(vlm), store.known_scores()
    told = [[(s.candidate.ids.tolist(), s.scores, s.total) for s in group] for _, group in groups]
    rows = [{name: np.asarray(v).tolist() for name, v in row.items()} for row in store.rows()]
    triplets = [(np.asarray(t.source).tobytes(), t.action, t.more) for t in store.triplets()]
    return [
        rows,
        told,
        groups.draws,
        groups.columns(),
        triplets,
        {k: known[k] for k in known},
        store.drawn(0, 1),
    ]


def number_of_rows(folder: Path) -> int:
    """Of the files, whatever they say twice."""
    return sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*"))


@pytest.fixture
def folder(tiny: ChameleonVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """13 parts of 6 rows: 2 seeds x 6 steps x 3 prompts, and one draw again, with other scores of another reward."""
    monkeypatch.setattr(part_folder, "ROW_GROUP", 8)
    for seed in range(2):
        for step in range(6):
            append(tiny, tmp_path / "candidates", seed, step)
    append(tiny, tmp_path / "candidates", 0, 2, shift=0.5, name="b")
    return tmp_path / "candidates"


def test_many_parts_become_few_and_readers_see_the_same(tiny: ChameleonVLM, folder: Path) -> None:
    before = seen(tiny, folder)
    assert len(before[0]) == 72
    assert CandidateStore(folder).compact(rows=30) == 3
    assert seen(tiny, folder) == before
    parts = CandidateStore(folder).opened()
    assert (parts.rows, sum(parts.rows)) == ([30, 30, 18], number_of_rows(folder))
    assert parts.groups == [4, 4, 3]  # of 8 rows each
    append(tiny, folder, 1, 7)
    after = seen(tiny, folder)
    assert CandidateStore(folder).compact(rows=30) == 3  # big ones are left as they are
    assert seen(tiny, folder) == after
    assert CandidateStore(folder).compact(rows=1000) == 1
    assert CandidateStore(folder).compact(rows=1000) == 1
    assert seen(tiny, folder) == after
    assert sorted(p.name for p in folder.iterdir()) == [CandidateStore(folder).parts()[0].name, "pictures"]


class Killed(BaseException):
    """What no `except Exception` holds back."""


def test_a_kill_at_any_step_loses_nothing_and_shows_nothing_twice(
    tiny: ChameleonVLM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in CandidateStore(folder).parts()[4:-1]:  # five are enough
        part.unlink()
    before, left = seen(tiny, folder), -1

    def dying(real: Any) -> Any:
        def step(*given: Any, **how: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return real(*given, **how)

        return step

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync"), (pq.ParquetWriter, "write_table")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    kills = 0
    while True:  # each time one step further, in a copy of the store
        kills += 1
        here = tmp_path / str(kills) / "candidates"
        (here / "pictures").mkdir(parents=True)
        for file in [*folder.glob("part-*"), *folder.glob("pictures/*")]:
            (here / file.relative_to(folder)).write_bytes(file.read_bytes())
        left = kills
        try:
            CandidateStore(here).compact(rows=13)
        except Killed:
            pass
        else:
            break
        left = -1
        assert seen(tiny, here) == before, kills
        (here / lock.LOCK_FILE).unlink(missing_ok=True)
        lock._held.clear()
        append(tiny, here, 1, 7)  # and a run goes on in between
        assert CandidateStore(here).compact(rows=13) == 2
        assert number_of_rows(here) == 30 + 6, kills
        assert seen(tiny, here)[0][:24] == before[0]
        assert not list(here.glob(".*"))
    assert kills > 12


def test_a_reader_that_looked_before_finds_all(
    tiny: ChameleonVLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real, told = seen(tiny, folder), PartFolder.parts, []

    def joined_behind_its_back(self: PartFolder) -> list[Path]:
        files = real(self)
        if not told:
            told.append(True)
            CandidateStore(folder).compact(rows=30)
        return files

    monkeypatch.setattr(PartFolder, "parts", joined_behind_its_back)
    rows = CandidateStore(folder).rows()
    assert told
    assert [row["total"] for row in rows] == [row["total"] for row in before[0]]


def test_who_still_writes_goes_on(tiny: ChameleonVLM, folder: Path) -> None:
    """Its open part is joined to another one: it begins a new one, and none of its rows is written over."""
    writing = CandidateStore(folder)
    scored = [
        Scored(Candidate(tiny.layout.image_ids_V[[9] * 4].numpy(), np.zeros(4, np.float32), tiny), {"a": 1.0}, 1.0)
    ]
    writing.append([(TRIPLETS[0], scored)], seed=5, step=0)
    CandidateStore(folder).compact()
    writing.append([(TRIPLETS[0], scored)], seed=5, step=1)
    writing.append([(TRIPLETS[0], scored)], seed=5, step=2)
    assert [(row["seed"], row["step"]) for row in writing.rows()][-3:] == [(5, 0), (5, 1), (5, 2)]
    assert len(writing.rows()) == number_of_rows(folder) - 6 == 75
    assert len(writing.parts()) == 2


def test_rows_that_are_added_meanwhile_stay(tiny: ChameleonVLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process of which nothing is known: its part is not removed."""
    writing, real = CandidateStore(folder), pq.ParquetWriter.write_table
    scored = [
        Scored(Candidate(tiny.layout.image_ids_V[[9] * 4].numpy(), np.zeros(4, np.float32), tiny), {"a": 1.0}, 1.0)
    ]
    writing.append([(TRIPLETS[0], scored)], seed=5, step=0)

    def beside(self: Any, *given: Any, **how: Any) -> None:
        monkeypatch.setattr(pq.ParquetWriter, "write_table", real)
        writing.append([(TRIPLETS[0], scored)], seed=5, step=1)
        real(self, *given, **how)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", beside)
    CandidateStore(folder).compact()
    assert {(row["seed"], row["step"]) for row in writing.rows()} >= {(5, 0), (5, 1)}
    assert len(writing.rows()) == 74
    CandidateStore(folder).compact()
    assert len(writing.rows()) == 74


def test_it_is_refused_while_another_process_writes(tiny: ChameleonVLM, folder: Path) -> None:
    before = sorted(folder.glob("part-*"))
    (folder.parent / CONFIG_FILE).write_text("{}")
    alive = {"host": socket.gethostname(), "pid": os.getppid(), "started": lock._started(os.getppid())}
    for place in (folder.parent, folder):
        (place / lock.LOCK_FILE).write_text(json.dumps(alive))
        with pytest.raises(RewindError, match=f"process {os.getppid()} is at work in the output folder {place}:"):
            CandidateStore(folder).compact()
        (place / lock.LOCK_FILE).unlink()
    assert sorted(folder.glob("part-*")) == before
    assert CandidateStore(folder).compact() == 1
    assert not (folder / lock.LOCK_FILE).exists()
    assert not (folder.parent / lock.LOCK_FILE).exists()


def test_what_cannot_be_joined(
    tiny: ChameleonVLM, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = seen(tiny, folder)
    for wrong in (0, 2.5):
        with pytest.raises(RewindError, match="rows must be"):
            CandidateStore(folder).compact(rows=wrong)  # type: ignore[arg-type]
    with pytest.raises(RewindError, match="holds no scored candidates"):
        CandidateStore(folder / "none").compact()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(RewindError, match=r"nothing of them is lost\): .*No space left"):
            CandidateStore(folder).compact()
        patch.setattr(candidates, "MANY", 1)
        candidates.make_few(CandidateStore(folder))  # a run that ends says so, and ends
    assert "No space left" in caplog.text
    assert not list(folder.glob(".*"))
    torn = CandidateStore(folder).parts()[-1]
    torn.write_bytes(torn.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING, logger="rl"):
        assert CandidateStore(folder).compact() == 1
    assert torn.is_file()
    assert len(seen(tiny, folder)[0]) == len(before[0])


def test_a_store_of_before_is_joined_with_nulls(tiny: ChameleonVLM, folder: Path) -> None:
    first = CandidateStore(folder).parts()[0]
    pq.write_table(pq.read_table(first).drop_columns(["scorers", "more"]), first)
    before = seen(tiny, folder)
    CandidateStore(folder).compact()
    assert seen(tiny, folder) == before


def test_some_row_groups_are_held_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, read, real = [], [], Parts.read

    def counted(self: Parts, part: int, group: int, columns: Any = None) -> pa.Table:
        read.append((part, group))
        return real(self, part, group, columns)

    write = pq.ParquetWriter.write_table

    def noted(self: Any, table: pa.Table, **how: Any) -> None:
        written.append((len(table), len(read)))
        write(self, table, **how)

    monkeypatch.setattr(Parts, "read", counted)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", noted)
    CandidateStore(folder).compact()
    assert read == [(number, 0) for number in range(13)]
    assert all(count <= 8 for count, _ in written)
    assert all(6 * parts - sum(c for c, _ in written[: n + 1]) < 8 for n, (_, parts) in enumerate(written))


def test_sentences_are_joined_too(tmp_path: Path) -> None:
    store = SentenceStore(tmp_path)
    row = dict.fromkeys(SENTENCES.names) | {"source": "s", "target": "t", "ids": [1], "rewards": ["a"], "scores": [1.0]}
    for step in range(5):
        pq.write_table(
            pa.Table.from_pylist([row | {"seed": 0, "step": step, "number": 0}], SENTENCES), store.new_part()
        )
    before = store.rows()
    assert (store.compact(), store.rows()) == (1, before)
    assert [row["step"] for row in before] == [0, 1, 2, 3, 4]
