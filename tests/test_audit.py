"""The audit of a reward: its probes, its figures by hand, and a script that finds a bad reward."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from script_runs import start

from rewards.rivals import word_edits
from rl.codes import Grid
from rl.data.triplet_files import write_triplets
from rl.errors import RewindError
from rl.evaluation.adversaries import adversaries
from rl.evaluation.audit import ATTACKED, BEST_OF, audit, score_probes, worst_first
from rl.evaluation.oracle import sample_tasks
from rl.evaluation.ranking import selection
from rl.evaluation.reward_probes import KINDS, TRUTH, _damaged, build
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics
from rl.models.unified import UnifiedVLM
from rl.search.attack import greedy
from rl.search.best_of_n import expected_best
from rl.triplets import Triplet
from rl.worlds.tabletop import Tabletop


def triplets_of(world: Tabletop, count: int) -> list[Triplet]:
    tasks = sample_tasks(world, count, 3)
    return [Triplet(t.source, t.action, t.target, world.family(t.action)) for t in tasks]


def test_probes_on_the_shipped_base(shipped: UnifiedVLM) -> None:
    triplets = triplets_of(Tabletop("test"), 12)
    cases = build(triplets, shipped, word_edits)
    assert all(set(row) <= {TRUTH, *KINDS} for row in cases)
    assert any("counterfactual_action" in row for row in cases)
    for t, row in zip(triplets, cases, strict=True):
        source, target = shipped.encode([t.source, t.target]).numpy()  # type: ignore[list-item]
        assert (row[TRUTH].ids_K == target).all()
        assert (row["copy"].ids_K == source).all()
        assert sorted(row["shuffled"].ids_K) == sorted(target)
        changed = row["damaged"].ids_K != target
        assert changed.sum() == 1  # one cell of the table
        assert not (changed & (source != target)).any()  # the action stays done
        assert row["swapped"].source is not t.source
        assert row["wrong_action"].action != t.action
        for kind in ("swapped", "wrong_action"):
            assert row[kind].target is None
    true, dark = (
        shipped.decode(np.stack([row[kind].ids_K for row in cases])).mean((1, 2, 3)) for kind in (TRUTH, "darkened")
    )
    assert dark.mean() < 0.9 * true.mean()  # though the tokenizer has its own limits of light
    with pytest.raises(RewindError, match="at least two triplets, and a true target"):
        build([Triplet(triplets[0].source, "remove all rings")] * 2, shipped, word_edits)


def test_a_wrong_action_does_not_lead_there(shipped: UnifiedVLM) -> None:
    triplets = triplets_of(Tabletop("test"), 4)
    cases = build(triplets, shipped, word_edits, leads_there=lambda number, action: number == 0)
    assert "wrong_action" not in cases[0]
    assert "counterfactual_action" not in cases[0]
    assert "wrong_action" in cases[1]


def test_figures_and_words_by_hand() -> None:
    truth = np.array([1.0] * 10 + [2.0] * 10)
    copy = np.array([0.0] * 10 + [2.0] * 5 + [3.0] + [0.0] * 3 + [np.nan])
    scores = {TRUTH: truth, "copy": copy, "noise": truth - 5, "blurred": np.full(20, np.nan)}
    found = audit(scores, ["add"] * 10 + ["move"] * 10)
    entry = found["probes"]["copy"]
    assert found["threshold"] == 1.0
    assert entry["n"] == 19
    assert entry["as_good"] == pytest.approx(6 / 19)
    assert entry["truth_wins"] == pytest.approx(13 / 19)
    assert entry["passes"] == pytest.approx(6 / 19)
    # 19 truths against 19 copies: 13 copies at 0 lose to all, 5 at 2 tie with 9 and beat 10, one at 3 beats all
    assert entry["auc"] == pytest.approx((13 * 19 + 5 * 9 * 0.5) / 19**2)
    assert entry["by_task"]["move"] == {"n": 9, "as_good": pytest.approx(6 / 9)}
    assert entry["level"] == "fails"
    assert entry["verdict"] == (
        "the copied source scores as well as the truth on 32% of actions, 67% of move actions: add copy_penalty, or "
        "use idm_margin"
    )
    used = audit(scores, ["add"] * 10 + ["move"] * 10, used=["idm_margin"])
    assert used["probes"]["copy"]["verdict"].endswith(": add copy_penalty, or let a monitor watch copies")
    assert found["probes"]["noise"]["level"] == "good"
    assert found["probes"]["blurred"]["level"] == "unscored"
    assert worst_first(found) == [entry["verdict"], found["probes"]["blurred"]["verdict"]]


def test_a_right_picture_that_scores_higher_is_no_fault() -> None:
    scores = {TRUTH: np.zeros(4), BEST_OF: np.ones(4)}
    found = audit(scores, [None] * 4, {BEST_OF: np.array([True, True, True, False])}, threshold=0.0)
    assert (found["probes"][BEST_OF]["right"], found["probes"][BEST_OF]["fooled"]) == (0.75, 0.25)
    assert found["probes"][BEST_OF]["level"] == "weak"


def test_selection_tells_a_sound_reward_from_a_gamed_one() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((60, 32)) < 0.3
    sound = right + 0.1 * rng.random((60, 32))
    found = selection(sound, right, expected_best, 16)
    assert found["within_group_auc"] == 1.0
    assert found["by_score"] == found["by_oracle"]
    assert (found["from"], found["to"]) == (4, 16)
    assert found["verdict"].startswith("more selection still helps")
    gamed = selection(-sound, right, expected_best, 16)
    assert gamed["within_group_auc"] == 0.0
    assert gamed["verdict"].startswith("the reward is gamed")
    assert list(found["by_score"]) == ["1", "2", "4", "8", "16"]


def test_greedy_search_climbs_and_keeps_its_bound() -> None:
    asked = []

    def score(groups: list[np.ndarray]) -> list[list[float | None]]:
        asked.append(sum(len(group) for group in groups))
        return [[None if ids[0] == 7 else float((ids == 5).sum()) for ids in group] for group in groups]

    starts = np.zeros((3, 4), dtype=np.int64)
    found = greedy(starts, np.array([0, 5, 7]), score, queries=200, proposals=8, seed=1)
    assert (found == 5).all()
    assert sum(asked) == 200 * 3
    assert (starts == 0).all()
    assert (greedy(starts, np.array([0, 7]), score, queries=8, proposals=8) == 0).all()  # nothing better: as it was
    with pytest.raises(RewindError, match="at least 2 proposals"):
        greedy(starts, np.array([0]), score, queries=4, proposals=8)


def test_adversaries_of_a_reward_for_one_token(tiny: ChameleonVLM) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    triplets = [Triplet(a, "remove all rings", b) for a, b in zip(pictures[:3], pictures[3:], strict=True)]
    wanted = int(tiny.layout.image_ids_V[3])

    def score(groups):  # type: ignore[no-untyped-def]
        return [[float((case.ids_K == wanted).sum()) for case in group] for group in groups]

    fdm = ForwardDynamics(tiny)
    found, rows = adversaries(fdm, triplets, score, greedy, expected_best, threshold=1.0, best_of=4, queries=200)
    assert found["probes"][ATTACKED]["mean"] > 3
    assert found["probes"][ATTACKED]["level"] == "fails"
    assert "selection" not in found
    assert [len(row) for row in rows] == [4, 4, 4]
    assert set(score_probes(build(triplets, tiny, word_edits), score)) == {TRUTH, *KINDS}


def test_tokens_are_not_optimised_into_what_cannot_be_scored(tiny: ChameleonVLM) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    triplets = [Triplet(a, "remove all rings", b) for a, b in zip(pictures[:2], pictures[2:], strict=True)]
    best, unreadable = (int(tiny.layout.image_ids_V[number]) for number in (3, 4))

    def score(groups):  # type: ignore[no-untyped-def]
        def one(ids: np.ndarray) -> float | None:
            return None if (ids == unreadable).any() else float((ids == best).sum())

        return [[one(case.ids_K) for case in group] for group in groups]

    asked = {"threshold": 1.0, "best_of": 2, "queries": 400}
    found, _ = adversaries(ForwardDynamics(tiny), triplets, score, greedy, expected_best, **asked)
    assert found["probes"][ATTACKED]["n"] == 2


def test_the_damaged_probe_of_a_picture_that_is_not_square() -> None:
    source, target, other = np.zeros(24, int), np.repeat([0, 1], 12), np.full(24, 5)
    damaged = _damaged(source, target, other, Grid(4, 6)).reshape(4, 6)
    assert (damaged == 5).sum() == 1  # a quarter of 4 rows, of 6 columns
    assert (damaged[:2] == 5).sum() == 1  # where nothing was to change
    long = _damaged(np.zeros(64, int), np.zeros(64, int), np.full(64, 5), Grid(4, 16)).reshape(4, 16)
    assert np.argwhere(long == 5).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


def test_the_script_audits_rewards_with_their_arguments(tmp_path: Path) -> None:
    """With every token free nothing costs; with none, whatever changes more than the truth does."""
    write_triplets(triplets_of(Tabletop("test"), 2), tmp_path / "data")
    command = ["scripts/audit_reward.py", "--idm", "tabletop-chameleon", "--rewards", "keep_unchanged"]
    command += ["--triplets", tmp_path / "data" / "triplets.json"]
    means = {}
    for default in (16, 0):
        told, output = {"keep_unchanged": {"default": default}}, tmp_path / str(default)
        done = start(*command, "--reward_arguments", json.dumps(told), "--output", output)
        assert done.returncode == 0, done.stderr
        found = json.loads((output / "results.json").read_text())
        assert found["reward_arguments"] == told
        means[default] = found["probes"]["noise"]["mean"]
    assert means[16] == 0
    assert means[0] <= -8
    done = start(*command, "--reward_arguments", '{"idm_margin": {}}', "--output", tmp_path / "none")
    assert done.returncode == 2
    assert "idm_margin" in done.stderr


def test_the_script_sees_through_a_bad_reward(tmp_path: Path) -> None:
    """The reward of docs/findings/reward-hacking.md, with the oracle; then bad input."""
    write_triplets(triplets_of(Tabletop("test"), 5), tmp_path / "data")
    bright = f"{ROOT / 'docs' / 'findings' / 'bad_rewards.py'}:bright"
    command = ["scripts/audit_reward.py", "--rewards", bright, "--output", tmp_path / "out"]
    small = ["--fdm", "tabletop-chameleon", "--world", "tabletop", "--num_scenes", 3, "--best_of", 2, "--queries", 16]
    small += ["--idm", "tabletop-chameleon"]
    done = start(*command, *small, "--triplets", tmp_path / "data" / "triplets.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["probes"]) == {*KINDS, BEST_OF, ATTACKED}
    assert found["probes"]["wrong_action"]["level"] == "fails"  # the same picture, the same score
    assert found["probes"]["darkened"]["truth_wins"] == 1.0
    assert found["selection"]["scenes"] == 3
    assert "scores as well as the truth" in done.stdout
    assert found["premise"]["video"] == "no"  # the bare base names nothing
    assert found["premise"]["idm"]["n"] == 5
    assert all(sentence in done.stdout for sentence in found["premise"]["verdicts"])
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 2
    done = start(*command[:3], "--output", tmp_path / "none", "--world", "tabletop")
    assert done.returncode == 2
    assert "give --fdm too" in done.stderr


def test_the_script_says_that_a_reward_needs_the_forward_model(tmp_path: Path) -> None:
    command = ["scripts/audit_reward.py", "--rewards", "copy_penalty", "fdm_confidence=0.5", "--output", tmp_path / "x"]
    done = start(*command, "--idm", "tabletop-chameleon", "--triplets", tmp_path / "triplets.json")
    assert done.returncode == 2
    assert "the reward 'fdm_confidence' asks how likely a forward model finds a picture: give --fdm" in done.stderr
    assert not (tmp_path / "x").exists()
