"""Reading a store: draws are never mixed, what is read is counted, and rounds go on from what they drew."""

from __future__ import annotations

import pickle
import weakref
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny

from rewards import Reward
from rl.data.candidates import store as store_module
from rl.data.candidates.store import CandidateStore, candidate_key
from rl.data.candidates.stored import KnownScores, Parts
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics
from rl.triplets import Candidate, Scored, Triplet
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.best_of_n.keep import Keep, Kept, keep_best, kept_rows
from trainers.common import candidates as candidates_module
from trainers.common import machines
from trainers.common import rows_on_disk as rows_module
from trainers.common.candidates import groups_of_round, scored_groups, stored_groups
from trainers.common.rows_on_disk import in_passing
from trainers.dpo.trainer import Pairing, preference_rows

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
TRIPLETS = [Triplet(picture, "remove all rings") for picture in PICTURES]


def group(vlm: ChameleonVLM, draw: int, count: int = 4) -> list[Scored]:
    """Candidates that tell their draw and number by their tokens."""
    made = []
    for number in range(count):
        ids = vlm.layout.image_ids_V[[draw % 16, number, 0, 0]].numpy()
        total = float(number) + draw / 100
        made.append(Scored(Candidate(ids, np.zeros(4, np.float32), vlm), {"a": total}, total))
    return made


@pytest.fixture
def filled(tiny: ChameleonVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CandidateStore:
    """48 draws of 4, of 6 prompts at 8 steps, in parts of 40 rows and row groups of 16."""
    monkeypatch.setattr(store_module, "ROWS", 40)
    monkeypatch.setattr(store_module, "ROW_GROUP", 16)
    store = CandidateStore(tmp_path / "candidates")
    for step in range(8):
        for number, triplet in enumerate(TRIPLETS):
            store.append([(triplet, group(tiny, 6 * step + number))], seed=0, step=step)
    return store


def test_a_part_per_rows_and_not_per_step(filled: CandidateStore) -> None:
    assert len(list(filled.folder.glob("part-*"))) == 5  # of 192 rows
    assert len(filled.rows()) == 192
    assert [row["candidate"] for row in filled.rows()] == [0, 1, 2, 3] * 48


def test_ids_are_read_once_and_a_few_row_groups_at_a_time(
    tiny: ChameleonVLM, filled: CandidateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many candidates there are: each row group once, and no other column than is needed before that."""
    whole: list[tuple[int, int]] = []
    narrow: set[str] = set()
    read = Parts.read

    def counted(self: Parts, part: int, number: int, columns: Any = None) -> Any:
        whole.append((part, number)) if columns is None else narrow.update(columns)
        return read(self, part, number, columns)

    monkeypatch.setattr(Parts, "read", counted)
    groups = filled.groups(tiny)
    assert len(whole) == 1  # the first draw, to see its size
    assert not narrow & {"ids", "logprobs", "rewards", "scores"}
    rewards = [Reward.of(lambda predicted_ids: [float(ids[1]) for ids in predicted_ids], "a")]
    whole.clear()
    kept, totals = keep_best(tiny, stored_groups([str(filled.folder)], tiny, rewards, None, chunk_size=3), Keep(4))
    assert (len(kept), len(totals)) == (48, 192)
    assert whole == sorted(set(whole))
    assert len(whole) == sum(groups.parts.groups) == 14


def test_what_is_learned_from_lies_on_disk(
    tiny: ChameleonVLM, filled: CandidateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are the very ones that memory would hold, while some candidates at a time are alive, of however many."""
    monkeypatch.setattr(rows_module, "AT_ONCE", 5)
    rewards, alive, most = [Reward.of(lambda predicted_ids: [float(ids[1]) for ids in predicted_ids], "a")], [0], [0]

    def watched(groups: Any) -> Any:
        for triplet, group in groups:
            for one in group:
                alive[0] += 1
                weakref.finalize(one, lambda: alive.__setitem__(0, alive[0] - 1))
            most[0] = max(most[0], alive[0])
            yield triplet, group

    def groups() -> Any:
        return watched(stored_groups([str(filled.folder)], tiny, rewards, None, chunk_size=3))

    for keep in (Keep(4), Keep(4, top=2, reward_temperature=1.0)):
        plain = kept_rows(tiny, keep_best(tiny, groups(), keep)[0])
        most[0], totals = 0, array("d")
        rows = kept_rows(tiny, keep.of(tiny, in_passing(groups(), totals)), filled.folder / "kept.arrow")
        assert len(rows) == len(plain) == 48 * keep.top
        assert len(totals) == 192
        assert most[0] <= 3 * 4 + 2 * 5 + 4  # a chunk of groups, what waits to be written, the group at hand
        for row, other in zip(rows, plain, strict=True):
            assert row.keys() == other.keys()
            assert all(np.array_equal(row[name], other[name]) for name in row)
            assert all(row[name].dtype == other[name].dtype for name in row)
        assert b"kept.arrow" in pickle.dumps(rows.format["format_kwargs"]["transform"])  # no worker gets the rows
    most[0], pairing = 0, Pairing(4)
    pairs = preference_rows(tiny, pairing.pairs(groups()), filled.folder / "pairs.arrow")
    assert most[0] <= 3 * 4 + 2 * 2 * 5 + 4
    assert [*pairs] == [*preference_rows(tiny, pairing.pairs(groups()))]
    assert not list(filled.folder.glob("*.partial"))


def test_rows_that_cannot_be_written_are_said(tiny: ChameleonVLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = [Kept(TRIPLETS[0], group(tiny, 0)[0], 1.0)]
    with pytest.raises(RewindError, match="cannot be written to"):
        kept_rows(tiny, kept, tmp_path / "file" / "kept.arrow")
    with pytest.raises(RewindError, match="lower --min_lead"):
        kept_rows(tiny, [], tmp_path / "kept.arrow")
    with pytest.raises(RewindError, match="lower --min_gap"):
        preference_rows(tiny, [], tmp_path / "pairs.arrow")
    nobody = [Scored(one.candidate, {"a": None}, None) for one in group(tiny, 0)]
    with pytest.raises(RewindError, match="no candidate could be scored"):
        kept_rows(tiny, Keep(4).of(tiny, in_passing([(TRIPLETS[0], nobody)], [])), tmp_path / "kept.arrow")


def test_an_output_folder_that_another_machine_lacks_is_said(
    tiny: ChameleonVLM, filled: CandidateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two processes is here; what the other one would say is made up."""
    monkeypatch.setattr(machines, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(machines, "PATIENCE", 0.0)
    told: list[Any] = [None]
    monkeypatch.setattr(machines, "gather_object", lambda mine: mine + told)
    rows = [Kept(TRIPLETS[0], group(tiny, 0)[0], 1.0)]
    assert len(kept_rows(tiny, rows, filled.folder / "kept.arrow")) == 1
    told[0] = "second-host"
    with pytest.raises(RewindError, match=r"kept.arrow is not there on second-host: on several machines"):
        kept_rows(tiny, rows, filled.folder / "kept.arrow")
    monkeypatch.setattr(candidates_module, "gather_object", lambda mine: [*mine, (99, "drawn elsewhere")])
    drawn = scored_groups(ForwardDynamics(tiny), [], TRIPLETS[:1], 2, store=CandidateStore(filled.folder / "new"))
    with pytest.raises(RewindError, match=r"new lacks what other processes have drawn"):
        list(drawn)


def test_draws_of_one_prompt_are_scored_each_by_itself(tiny: ChameleonVLM, filled: CandidateStore) -> None:
    """A reward that compares the candidates of a source sees one draw's; all draws have the same sources and words."""
    seen: list[list[int]] = []

    def spread(prompts: list[str], source_image: list[Any], predicted_ids: list[list[int]]) -> list[float]:
        alike: dict[int, list[int]] = {}
        for number, source in enumerate(source_image):
            alike.setdefault(id(source), []).append(number)
        for numbers in alike.values():
            seen.append(sorted(predicted_ids[n][0] for n in numbers))
        return [0.0] * len(prompts)

    groups = list(stored_groups([str(filled.folder)], tiny, [Reward.of(spread)], None))
    assert len(seen) == len(groups) == 48
    assert all(len(firsts) == 4 and len(set(firsts)) == 1 for firsts in seen)


def test_known_scores_hold_numbers_alone() -> None:
    known, keys = KnownScores(), [candidate_key("s", "a", [n, n]) for n in range(5)]
    for number, key in enumerate(keys):
        known.add(key, {"a": float(number)} if number % 2 else {"b": None})
    assert (len(known), known[keys[1]], known[keys[2]]) == (5, {"a": 1.0}, {"b": None})
    known.add(keys[1], {"b": 7.0, "a": 3.0})
    known.add(keys[0], {})
    assert (known[keys[1]], known[keys[0]]) == ({"a": 3.0, "b": 7.0}, {"b": None})
    assert set(known) == set(keys)
    assert known.get(candidate_key("s", "b", [0, 0])) is None
    assert not KnownScores()
    many = KnownScores()
    for number in range(30_000):
        many.add(number.to_bytes(16, "big"), {"a": float(number)})
        assert len(many._new) <= max(4096, number // 4)
    assert [many[number.to_bytes(16, "big")]["a"] for number in (0, 4096, 29_999)] == [0.0, 4096.0, 29_999.0]


def test_a_round_that_was_cut_off_draws_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fdm, drawn = ForwardDynamics(make_tiny()), []
    rewards = [Reward.of(lambda predicted_ids: [float(ids[0]) for ids in predicted_ids], "first")]
    arguments = BestOfNArguments(num_candidates=3)
    sample = ForwardDynamics.sample

    def counted(self: ForwardDynamics, sources: Any, *given: Any, **how: Any) -> Any:
        drawn.append(len(sources))
        return sample(self, sources, *given, **how)

    monkeypatch.setattr(ForwardDynamics, "sample", counted)
    whole = list(groups_of_round(arguments, fdm, rewards, TRIPLETS, 1, 0, tmp_path / "whole"))
    cut = CandidateStore(tmp_path / "cut" / "candidates")
    list(scored_groups(fdm, rewards, TRIPLETS[:4], 3, seed=1, step=0, store=cut))
    drawn.clear()
    again = list(groups_of_round(arguments, fdm, rewards, TRIPLETS, 1, 0, tmp_path / "cut"))
    assert drawn == [2]
    assert "4 of 6 draws are in" in caplog.text
    for (triplet, one), (other, two) in zip(again, whole, strict=True):
        assert triplet is other
        assert [s.total for s in one] == [s.total for s in two]
        assert all((a.candidate.ids == b.candidate.ids).all() for a, b in zip(one, two, strict=True))
    drawn.clear()
    list(groups_of_round(arguments, fdm, rewards, TRIPLETS, 1, 1, tmp_path / "cut"))
    assert drawn == [6]  # the next round's noise, and policy, are others
