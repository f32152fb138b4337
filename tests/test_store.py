"""The store of scored candidates: what goes in comes out, once, whole or not at all; nothing is scored twice."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tiny
from datasets import load_dataset
from PIL import Image

from rewards import Reward, load_rewards, scorers
from rl.data.candidates.store import SCHEMA, CandidateStore, Group, candidate_key, picture_key, store_of
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics
from rl.triplets import Candidate, Scored, Triplet
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.common.candidates import groups_of_round, scored_groups, stored_groups, stored_triplets

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
TRIPLETS = [
    Triplet(PICTURES[0], "remove all rings", PICTURES[2], task="count"),
    Triplet(PICTURES[1], "move the red circle left"),
]


def scored(vlm: ChameleonVLM, codes: list[int], total: float | None, **scores: float | None) -> Scored:
    ids = vlm.layout.image_ids_V[codes].numpy()
    logprobs = np.linspace(-2, -1, len(codes), dtype=np.float32)
    return Scored(Candidate(ids, logprobs, vlm), scores, total)


def test_what_goes_in_comes_out(tiny: ChameleonVLM, tmp_path: Path) -> None:
    store = CandidateStore(tmp_path / "run" / "candidates", idm="runs/idm")
    first = [
        scored(tiny, [0, 1, 2, 3], 0.1 + 0.2, margin=0.1, kept=None),
        scored(tiny, [3, 3, 3, 3], None, margin=None),
    ]
    second = [scored(tiny, [5, 5, 5, 5], -1.0, margin=-1.0)]
    store.append([(TRIPLETS[0], first), (TRIPLETS[1], second)], seed=7, step=2)
    store.append([(TRIPLETS[1], second)], seed=7, step=3)
    groups = store_of(tmp_path / "run").groups(tiny)  # a run folder leads to its candidates
    assert [(t.action, t.task, len(group)) for t, group in groups] == [
        ("remove all rings", "count", 2),
        ("move the red circle left", None, 1),
        ("move the red circle left", None, 1),
    ]
    assert (np.asarray(groups[0][0].source) == PICTURES[0]).all()
    assert (np.asarray(groups[0][0].target) == PICTURES[2]).all()
    assert groups[1][0].target is None
    assert groups[1][0].source is not groups[2][0].source  # two draws are never compared with each other
    for before, after in zip(first, groups[0][1], strict=True):
        assert (after.scores, after.total) == (before.scores, before.total)
        assert (after.candidate.ids == before.candidate.ids).all()
        assert (after.candidate.logprobs == before.candidate.logprobs).all()
        assert after.image.size == (32, 32)
    assert {(row["seed"], row["step"], row["idm"]) for row in store.rows()} == {(7, 2, "runs/idm"), (7, 3, "runs/idm")}
    assert [t.action for t in store.triplets()] == ["remove all rings", "move the red circle left"]
    assert len(list((store.folder / "pictures").iterdir())) == 3
    table = load_dataset("parquet", data_files=str(store.folder / "part-*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table["train"].num_rows == 4
    assert table["train"][0]["ids"] == first[0].candidate.ids.tolist()


def test_the_same_candidate_is_kept_once(tiny: ChameleonVLM, tmp_path: Path) -> None:
    store = CandidateStore(tmp_path)
    group = [scored(tiny, [0] * 4, 1.0, a=1.0), scored(tiny, [1] * 4, 2.0, a=2.0)]
    store.append([(TRIPLETS[0], group)], seed=0, step=0)
    store.append([(TRIPLETS[0], [group[0], scored(tiny, [1] * 4, 5.0, a=5.0)])], seed=0, step=0)
    assert len(store.rows()) == 2
    assert [s.total for s in store.groups(tiny)[0][1]] == [1.0, 5.0]
    for other in ({"seed": 1, "step": 0}, {"seed": 0, "step": 1}):
        store.append([(TRIPLETS[0], group)], **other)
    assert len(store.rows()) == 6
    store.append([], seed=0, step=9)
    assert len(list(tmp_path.glob("part-*"))) == 1
    CandidateStore(tmp_path).append([(TRIPLETS[0], group)], seed=3, step=0)  # another process begins a part of its own
    assert len(list(tmp_path.glob("part-*"))) == 2


def test_a_torn_part_is_left_out(tiny: ChameleonVLM, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (0, 1):
        store = CandidateStore(tmp_path)
        store.append([(TRIPLETS[0], [scored(tiny, [step] * 4, 1.0)])], seed=0, step=step)
    torn = sorted(tmp_path.glob("part-*"))[0]
    torn.write_bytes(torn.read_bytes()[:-20])
    (tmp_path / ".part-000002-0.parquet-17").write_bytes(b"PAR1")  # a process was killed while it wrote
    with caplog.at_level(logging.WARNING, logger="rl"):
        assert [row["step"] for row in store.rows()] == [1]
    assert f"{torn} is damaged and left out" in caplog.text


def test_what_is_no_store(tiny: ChameleonVLM, tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="holds no scored candidates"):
        CandidateStore(tmp_path / "nothing").groups(tiny)
    store = CandidateStore(tmp_path / "store")
    store.append([(TRIPLETS[0], [scored(tiny, [1] * 4, 1.0)])], seed=0, step=0)
    other = make_tiny(seed=1)
    other.name = "another"
    with pytest.raises(RewindError, match="candidates of tiny, whose tokens are not those of another"):
        store.groups(other)
    pq.write_table(pa.table({"x": [1]}), store.folder / "part-000009-x.parquet")
    with pytest.raises(RewindError, match="has other columns than scored candidates"):
        store.rows()
    (tmp_path / "file").write_text("")
    with pytest.raises(RewindError, match="cannot be written"):
        CandidateStore(tmp_path / "file").append([(TRIPLETS[0], [scored(tiny, [1] * 4, 1.0)])], seed=0, step=0)
    assert SCHEMA.names[0] == "base"


def test_keys_do_not_depend_on_how_a_picture_is_held() -> None:
    assert picture_key(PICTURES[0]) == picture_key(Image.fromarray(PICTURES[0]))
    assert picture_key(PICTURES[0]) != picture_key(PICTURES[1])
    assert picture_key(PICTURES[0]) != picture_key(PICTURES[0].reshape(16, 64, 3))
    assert candidate_key("s", "a", [1, 2]) == candidate_key("s", "a", np.array([1, 2], np.int32))


class Counting:
    """Rewards with the first token and counts what it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, predicted_ids: list[list[int]]) -> list[float | None]:
        self.asked += len(predicted_ids)
        return [float(ids[0]) for ids in predicted_ids]


def test_a_candidate_is_scored_once_by_a_reward(tiny: ChameleonVLM, tmp_path: Path) -> None:
    fdm, count, other = ForwardDynamics(tiny), Counting(), Counting()
    first = [Reward.of(count, "first")]
    store = CandidateStore(tmp_path / "candidates", idm="idm-a")
    drawn = list(scored_groups(fdm, first, TRIPLETS, 3, seed=5, store=store))
    assert count.asked == 6
    again = list(scored_groups(fdm, first, TRIPLETS, 3, seed=5, store=store))
    assert count.asked == 6
    assert [[s.total for s in group] for _, group in again] == [[s.total for s in group] for _, group in drawn]
    assert len(store.rows()) == 6

    both = [Reward.of(count, "first", 0.5), Reward.of(other, "other", 2.0)]
    read = list(stored_groups([str(tmp_path)], tiny, both, "idm-a"))
    assert (count.asked, other.asked) == (6, 6)  # only what had no score, and under the weights of now
    for (_, group), (_, before) in zip(read, drawn, strict=True):
        assert [s.total for s in group] == [2.5 * (s.total or 0.0) for s in before]
    list(stored_groups([str(tmp_path)], tiny, first, "idm-b"))
    assert count.asked == 12  # another inverse model's scores are not taken over


WRITTEN = """
asked = []

def score(predicted_ids):
    asked.extend(predicted_ids)
    return [SIGN * ids[0] for ids in predicted_ids]
"""


def first_ids(groups: list[Group]) -> list[float]:
    return [float(s.candidate.ids[0]) for _, group in groups for s in group]


def test_another_reward_of_the_same_name_scores_anew(tiny: ChameleonVLM, tmp_path: Path) -> None:
    mine, other = tmp_path / "a.py", tmp_path / "b.py"
    mine.write_text(WRITTEN.replace("SIGN", "1.0"))
    other.write_text(WRITTEN.replace("SIGN", "-1.0"))
    drawing, stored = BestOfNArguments(num_candidates=2), BestOfNArguments(candidates=[str(tmp_path)])

    def totals(file: Path, arguments: BestOfNArguments) -> tuple[list[float | None], list[float], int]:
        rewards = load_rewards([f"{file}:score"])
        groups = list(groups_of_round(arguments, ForwardDynamics(tiny), rewards, TRIPLETS, 1, 0, tmp_path))
        asked = rewards[0].function.__globals__["asked"]  # type: ignore[attr-defined]
        return [s.total for _, group in groups for s in group], first_ids(groups), len(asked)

    drawn, ids, asked = totals(mine, drawing)
    assert (drawn, asked) == (ids, 4)
    assert totals(mine, stored) == (ids, ids, 0)  # the same reward is not asked again
    assert totals(other, stored) == ([-first for first in ids], ids, 4)
    mine.write_text(WRITTEN.replace("SIGN", "2.00"))  # of another size, so that Python compiles it anew in any case
    assert totals(mine, stored) == ([2 * first for first in ids], ids, 4)  # nor is an edited file the same reward


def test_a_module_is_known_by_its_path_and_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_of_the_test.py").write_text("from where_it_is_written import score\n")
    found = []
    for text in ("1.0", "1.0", "2.0"):
        (tmp_path / "where_it_is_written.py").write_text(WRITTEN.replace("SIGN", text))
        for module in ("rewards_of_the_test", "where_it_is_written"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        (reward,) = load_rewards(["rewards_of_the_test:score=0.5"])
        found.append(reward.scorer)
    assert found[0] == found[1] != found[2]
    assert all(scorer.startswith("rewards_of_the_test:score ") for scorer in found)
    assert scorers(load_rewards(["copy_penalty"])) == {}  # the name of a built-in reward says all


def test_another_judge_scores_anew(tiny: ChameleonVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    group = [scored(tiny, [0] * 4, 0.5, judge=0.5)]
    known, told = [], set()
    for server, model in (("one", "x"), ("one", "x"), ("two", "x"), ("one", "y")):
        monkeypatch.setenv("REWIND_JUDGE_URL", f"http://{server}.localhost/v1")
        monkeypatch.setenv("REWIND_JUDGE_MODEL", model)
        whom = scorers(load_rewards(["judge"], arguments={"judge": {"cache": None}}))
        store = CandidateStore(tmp_path, "runs/idm", whom)
        known.append([scores for scores in store.known_scores().values() if scores])
        store.append([(TRIPLETS[0], group)], seed=0, step=len(known))
        told |= {name for row in store.rows() for name in row["scorers"]}
    assert known == [[], [{"judge": 0.5}], [], []]
    assert len(told) == 3
    assert not any("secret" in name for name in told)


def test_a_store_of_before_is_read_and_its_own_rewards_are_asked(tiny: ChameleonVLM, tmp_path: Path) -> None:
    """A part without the column `scorers`, as stores had none once."""
    CandidateStore(tmp_path / "new").append(
        [(TRIPLETS[0], [scored(tiny, [1] * 4, 3.0, margin=1.0, score=2.0)])], seed=0, step=0
    )
    (part,) = (tmp_path / "new").glob("part-*")
    pq.write_table(pq.read_table(part).drop_columns(["scorers"]), tmp_path / "part-000000-x.parquet")
    (tmp_path / "new" / "pictures").rename(tmp_path / "pictures")
    store = CandidateStore(tmp_path, None, {"score": "a.py:score 0123"})
    assert store.groups(tiny)[0][1][0].scores == {"margin": 1.0, "score": 2.0}
    assert list(store.known_scores().values()) == [{"margin": 1.0}]
    store.append([(TRIPLETS[0], [scored(tiny, [1] * 4, 5.0, score=5.0)])], seed=0, step=1)
    assert list(store.known_scores().values()) == [{"margin": 1.0, "score": 5.0}]  # parts of both kinds in one folder


def test_a_round_on_stored_candidates(tiny: ChameleonVLM, tmp_path: Path) -> None:
    fdm, count = ForwardDynamics(tiny), Counting()
    rewards = [Reward.of(count, "first")]
    drawn = list(groups_of_round(BestOfNArguments(num_candidates=2), fdm, rewards, TRIPLETS, 1, 0, tmp_path))
    stored = BestOfNArguments(candidates=[str(tmp_path)])
    assert [t.action for t in stored_triplets(stored)] == [t.action for t in TRIPLETS]
    read = list(groups_of_round(stored, fdm, rewards, [], 1, 0, tmp_path / "unused"))
    assert [[s.scores for s in group] for _, group in read] == [[s.scores for s in group] for _, group in drawn]
    assert count.asked == 4
    assert not (tmp_path / "unused").exists()
    other = BestOfNArguments(candidates=[str(tmp_path)], reward_arguments={"first": {"floor": -3}})
    list(groups_of_round(other, fdm, rewards, [], 1, 0, tmp_path / "unused"))
    assert count.asked == 8  # scores under other arguments are not taken over
    for wrong in ({"rounds": 2}, {"triplets": ["x.json"]}):
        with pytest.raises(RewindError, match=r"--rounds 1|either --triplets"):
            stored_triplets(BestOfNArguments(candidates=[str(tmp_path)], **wrong))  # type: ignore[arg-type]


def test_a_run_of_the_inverse_role_has_no_candidates(tmp_path: Path) -> None:
    (tmp_path / "idm" / "sentences").mkdir(parents=True)
    for folder in (tmp_path / "idm", tmp_path / "idm" / "sentences"):
        with pytest.raises(RewindError, match=f"{folder} is of a run of --role idm, which keeps the sentences"):
            stored_triplets(BestOfNArguments(candidates=[str(folder)]))
