"""Intervals and measures of the inverse model, by hand."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards import load_rewards, score
from rl.errors import RewindError
from rl.evaluation import benchmark, oracle, probes
from rl.evaluation.benchmark import compare
from rl.evaluation.intervals import paired_difference, wilson
from rl.evaluation.probes import prefers_truth
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.search.best_of_n import expected_best
from rl.spilled import SpilledArrays
from rl.triplets import Triplet
from rl.worlds.tabletop import Tabletop
from trainers.common.candidates import batch_of


def test_wilson_against_the_published_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998), table I
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(RewindError):
        wilson(0, 0)


def test_a_paired_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        hard = rng.random(200)  # the same cases are hard for both
        ours, theirs = rng.random(200) < hard, rng.random(200) < np.clip(hard - 0.1, 0, 1)
        truth = float(np.mean(np.clip(np.arange(1e5) / 1e5 - 0.1, 0, 1)))
        _, low, high = paired_difference(ours.astype(float), theirs.astype(float), 500, seed)
        covered += low <= 0.5 - truth <= high
    assert covered >= 88
    assert paired_difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(RewindError, match="cannot be paired"):
        paired_difference([1.0], [1.0, 2.0])


def test_token_f1() -> None:
    assert oracle.token_f1("move the red circle left", "move the red circle left") == 1.0
    assert oracle.token_f1("Move it", "move the circle") == pytest.approx(2 / 5)
    assert oracle.token_f1("the the", "the") == pytest.approx(2 / 3)
    assert oracle.token_f1("", "move") == 0.0


def test_a_description_is_right_if_it_names_the_outcome() -> None:
    world = Tabletop()
    tasks = oracle.sample_tasks(world, 60, 1)

    class Truth:
        def describe(self, sources, targets):  # type: ignore[no-untyped-def]
            return [task.action for task in tasks]

    class Silent:
        def describe(self, sources, targets):  # type: ignore[no-untyped-def]
            return [""] * len(sources)

    found = oracle.idm_descriptions(Truth(), world, tasks)
    assert found["exact_match"] == found["token_f1"] == 1.0
    assert set(found["by_family"].values()) == {1.0}
    assert oracle.idm_descriptions(Silent(), world, tasks)["exact_match"] == 0.0
    vague = next(t for t in tasks if len(world.outcomes(t.scene, t.action)) == 1)
    assert not oracle.names_the_outcome(world, vague, "no sentence of this world")


def test_best_of_n_by_score_and_by_oracle() -> None:
    world = Tabletop()
    tasks = oracle.sample_tasks(world, 5, 2)

    class Backbone:
        def decode(self, ids: np.ndarray) -> np.ndarray:
            return np.stack([pictures[int(i)] for i in ids[:, 0]])

    class Drawn:
        def __init__(self, number: int) -> None:
            self.ids, self.backbone = np.array([number]), Backbone()

    pictures = [p for task in tasks for p in (task.source, task.source, task.source, task.target)]
    groups = [[Drawn(4 * i + j) for j in range(4)] for i in range(5)]
    good, bad = [[0.0, 0.0, 0.0, 1.0]] * 5, [[1.0, 1.0, 1.0, 0.0]] * 5
    right = oracle.are_right(groups, world, tasks)
    found = oracle.best_of_n(good, right, expected_best, [1, 2, 4])
    assert found["by_score"] == found["by_oracle"] == {"1": 0.25, "2": 0.5, "4": 1.0}
    assert oracle.best_of_n(bad, right, expected_best, [1, 2])["by_score"] == {"1": 0.25, "2": 0.0}


def test_predictions_against_true_targets(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    triplets = [
        Triplet(picture, "dim the light", picture // 2, task="light"),
        Triplet(picture, "wait", picture, task="nothing"),
        Triplet(picture, "invert it", 255 - picture),
    ]
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    found, drawn = compare(fdm, idm, triplets)
    assert list(found["tasks"]) == ["light", "nothing", "unnamed", "average"]
    assert [entry["n"] for entry in found["tasks"].values()] == [1, 1, 1, 3]
    assert found["tasks"]["light"]["l1"] == pytest.approx(
        np.abs(np.asarray(drawn[0].image, dtype=float) - picture // 2).mean() / 255
    )
    copy = found["copy"]
    assert (copy["nothing"]["l1"], copy["nothing"]["token_accuracy"]) == (0.0, 1.0)
    assert copy["average"]["copy_rate"] == 1.0
    assert copy["unnamed"]["l1"] == pytest.approx(np.abs(255 - 2.0 * picture).mean() / 255)
    assert copy["light"]["idm_likelihood"] == pytest.approx(idm.score(picture, [picture], "dim the light")[0])
    assert found["truth"]["average"]["token_accuracy"] == 1.0
    assert "idm_token_f1" not in compare(fdm, None, triplets)[0]["tasks"]["average"]
    with pytest.raises(RewindError, match="1 triplets have no target to compare with, the first is 'push it'"):
        compare(fdm, None, [Triplet(picture, "push it")])
    with pytest.raises(RewindError, match="no triplet"):
        compare(fdm, None, [])


def test_rewards_beside_the_measures(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    triplets = [
        Triplet(picture, "dim the light", picture // 2, task="light"),
        Triplet(picture, "invert it", 255 - picture),
        Triplet(picture, "wait", picture),
    ]
    before, _ = compare(ForwardDynamics(tiny), None, triplets)
    seen: list[list[str]] = []

    def length(prompts: list[str]) -> list[float | None]:
        seen.append(prompts)
        return [None if prompt == "wait" else float(len(prompt)) for prompt in prompts]

    def never(prompts: list[str]) -> list[None]:
        return [None] * len(prompts)

    rewards = load_rewards(["target_distance", "copy_penalty", length, never], arguments={"copy_penalty": {"least": 1}})

    def rate(groups: Any) -> Any:
        scored = iter(score(rewards, batch_of(groups)))
        return [[next(scored).scores for _ in group] for _, group in groups]

    found, _ = compare(ForwardDynamics(tiny), None, triplets, rate=rate)
    assert seen == [[triplet.action for triplet in triplets for _ in range(3)]]  # prediction, copy and truth in a group
    assert list(found["truth"]) == ["light", "unnamed", "average"]
    for key in ("tasks", "copy"):
        for task, entry in found[key].items():
            assert {name: value for name, value in entry.items() if name != "rewards"} == before[key][task]
    assert found["truth"]["average"]["rewards"]["target_distance"] == {"mean": 0.0, "n": 3}
    assert found["copy"]["average"]["rewards"]["copy_penalty"] == {"mean": -1.0, "n": 3}
    assert found["tasks"]["light"]["rewards"]["length"] == {"mean": 13.0, "n": 1}
    assert found["tasks"]["average"]["rewards"]["length"] == {"mean": 11.0, "n": 2}  # 13 and 9, and one without
    assert found["tasks"]["average"]["rewards"]["never"] == {"n": 0}
    wrong = found["tasks"]["average"]["rewards"]["target_distance"]["mean"]
    assert wrong == pytest.approx(before["tasks"]["average"]["token_accuracy"] - 1)


def test_comparing_holds_some_triplets_at_a_time(
    tiny: ChameleonVLM, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven triplets two at a time: the figures of all at once, and neither candidates nor pictures of earlier ones."""
    monkeypatch.setattr(benchmark, "SHOWN", 1)
    big = picture.repeat(2, 0).repeat(2, 1)  # so that the pictures at the model's size are arrays of their own
    rows = [Triplet(big, f"turn it by {n}", np.roll(big, n, 1), task="ab"[n % 2]) for n in range(7)]
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    seen: list[weakref.ref[Any]] = []
    living: list[int] = []
    to_array = tiny.to_array

    def watched(*given: Any) -> np.ndarray:
        found = to_array(*given)
        seen.append(weakref.ref(found))
        return found

    def rate(groups: Any) -> Any:
        seen.extend(weakref.ref(candidate) for _, group in groups for candidate in group)
        living.append(sum(one() is not None for one in seen))
        return [[{"n": float(one.ids[0])} for one in group] for _, group in groups]

    whole, _ = compare(fdm, idm, rows, rate=rate)
    assert living == [7 * 3]
    monkeypatch.setattr(tiny, "to_array", watched)
    seen.clear()
    living.clear()
    found, shown = compare(fdm, idm, rows, rate=rate, at_once=2)
    assert living == [2 * 3, 1 + 2 * 3, 1 + 2 * 3, 1 + 3]  # the one that is handed back, and those of the part
    assert len(shown) == 1
    assert len(seen) > 7 * 3
    for key, tasks in whole.items():
        assert [*found[key]] == ["a", "b", "average"]
        for task, entry in tasks.items():
            assert found[key][task].pop("idm_likelihood") == pytest.approx(entry.pop("idm_likelihood"), rel=1e-5)
            assert found[key][task] == entry


def test_a_worlds_cases_lie_in_a_file_and_give_the_same_figures(
    tiny: ChameleonVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.spilled.IN_MEMORY", 0)  # in a file, however few they are
    world, idm = Tabletop("test"), InverseDynamics(tiny)
    ours, plain = oracle.sample_tasks(world, 6, 3, SpilledArrays()), oracle.sample_tasks(world, 6, 3)
    base: Any = ours[5].target
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap), "memory holds pictures that nobody is looking at"
    for mine, other in zip(ours, plain, strict=True):
        assert (mine.scene, mine.action, mine.outcome) == (other.scene, other.action, other.outcome)
        assert np.array_equal(np.stack([mine.source, mine.target]), np.stack([other.source, other.target]))
    ours[0].source[:] = 0  # as a careless world might: the others stay
    assert np.array_equal(ours[0].target, plain[0].target)

    def measured(tasks: list[oracle.Task]) -> list[Any]:
        return [oracle.idm_descriptions(idm, world, tasks), prefers_truth(idm.score, world, tasks)]

    whole = measured(plain)
    monkeypatch.setattr(oracle, "READ_AT_ONCE", 4)
    monkeypatch.setattr(probes, "READ_AT_ONCE", 4)
    assert measured(oracle.sample_tasks(world, 6, 3, SpilledArrays())) == whole
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        with pytest.raises(RewindError, match="set TMPDIR"):
            oracle.sample_tasks(world, 6, 3, SpilledArrays())
