"""The reward contract: what a function is given, what it may answer, and how rewards are named and summed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny

from rewards import BUILT_IN, NEEDS_IDM, Batch, Reward, load_rewards, score
from rewards.idm_likelihood import IDMLikelihood
from rewards.idm_margin import IDMMargin, word_edits
from rewards.keep_unchanged import KeepUnchanged
from rl.errors import RewindError
from rl.models.chameleon import ChameleonVLM
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.triplets import Candidate

ACTION = "move the red circle left"


@pytest.fixture
def batch(tiny: ChameleonVLM, picture: np.ndarray) -> Batch:
    candidates = ForwardDynamics(tiny).sample(picture, ACTION, 3, seed=1)
    return Batch([ACTION] * 3, candidates, [picture] * 3, task=["move"] * 3)


def test_a_function_gets_what_it_names_and_no_more(batch: Batch) -> None:
    got: dict[str, Any] = {}

    def by_ids(predicted_ids: Any, source_ids: Any, task: Any, **rest: Any) -> list[float]:
        got.update(predicted_ids=predicted_ids, source_ids=source_ids, task=task, rest=rest)
        return [0.0] * 3

    def bright(completions: Any, **_: Any) -> list[float]:
        return [float(np.asarray(image).mean()) for image in completions]

    assert Reward.of(by_ids)(batch) == [0.0] * 3
    assert got["rest"] == {}
    assert got["task"] == ["move"] * 3
    assert got["predicted_ids"] == [c.ids.tolist() for c in batch.candidates]
    assert all("image" not in vars(c) for c in batch.candidates)  # nothing was decoded
    found = Reward.of(bright)(batch)
    assert found == [float(np.asarray(c.image).mean()) for c in batch.candidates]


def test_a_batch_fits_together(batch: Batch, picture: np.ndarray) -> None:
    with pytest.raises(RewindError, match="3 candidates and 2 entries of 'source_image'"):
        Batch([ACTION] * 3, batch.candidates, [picture] * 2)


def raises(prompts: Any, **_: Any) -> list[float]:
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (raises, "the reward 'raises' failed: ZeroDivisionError: boom"),
        (lambda prompts: [1.0], "gave 1 scores for 3 candidates"),
        (lambda prompts: [1.0, math.nan, 0.0], "gave nan for candidate 1"),
        (lambda prompts: ["high"] * 3, "must return a list of numbers or None"),
        (lambda prompts: 3, "must return a list of numbers or None"),
    ],
)
def test_a_failure_never_becomes_a_number(batch: Batch, function: Any, sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence):
        Reward.of(function)(batch)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda pictures: [], "asks for 'pictures', which there is not; it may ask for prompts"),
        (lambda prompts, /: [], "takes 'prompts' by position"),
        ("word", "cannot be called"),
    ],
)
def test_a_signature_that_cannot_be_met(function: Any, sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence):
        Reward.of(function)


def test_none_in_one_term_makes_a_candidate_unscorable(batch: Batch) -> None:
    first = Reward.of(lambda prompts: [1.0, None, 3.0], "first", 2.0)
    second = Reward.of(lambda prompts: [0.5, 0.5, None], "second", 1.0)
    watched = Reward.of(lambda prompts: [None] * 3, "watched", 0.0)
    found = score([first, second, watched], batch)
    assert [s.total for s in found] == [2.5, None, None]
    assert found[2].scores == {"first": 3.0, "second": None, "watched": None}


def test_names_paths_and_weights(tmp_path: Path, tiny: ChameleonVLM, batch: Batch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def flat(completions, **_): return [2.0 for _ in completions]\n"
        "class Big:\n    def __call__(self, predicted_ids): return [4.0] * len(predicted_ids)\n"
    )
    found = load_rewards(
        ["idm_likelihood=1.5", "keep_unchanged", f"{file}:flat=0.5", f"{file}:Big"], InverseDynamics(tiny)
    )
    assert [(r.name, r.weight) for r in found] == [
        ("idm_likelihood", 1.5),
        ("keep_unchanged", 1.0),
        ("flat", 0.5),
        ("Big", 1.0),
    ]
    assert found[2](batch) == [2.0] * 3
    assert found[3](batch) == [4.0] * 3
    assert set(BUILT_IN) > NEEDS_IDM


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [
        ("idm_margins", "there is no reward 'idm_margins': the built-in ones are idm_likelihood"),
        ("idm_margin=much", "the weight in 'idm_margin=much' is no number"),
        ("idm_margin=nan", "must be a number, not nan"),
        ("idm_likelihood", "needs an inverse model: give --idm"),
        ("none.py:f", "there is no file none.py"),
        ("FILE:f", "does not import: ZeroDivisionError"),
        ("json:f", "json has no 'f'"),
        ("no_such_package.x:f", "does not import: ModuleNotFoundError"),
    ],
)
def test_rewards_that_cannot_be_loaded(specification: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(RewindError, match=sentence):
        load_rewards(
            [specification.replace("FILE", str(tmp_path / "bad.py"))], idm=None if "like" in specification else 1
        )


def test_a_reward_twice() -> None:
    with pytest.raises(RewindError, match="'keep_unchanged' is given twice"):
        load_rewards(["keep_unchanged", "keep_unchanged=2"])
    with pytest.raises(RewindError, match="at least one reward"):
        load_rewards([])


def test_idm_likelihood_is_the_score_of_the_idm(batch: Batch, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    idm = InverseDynamics(tiny)
    assert Reward.of(IDMLikelihood(idm))(batch) == pytest.approx(idm.score(picture, batch.candidates, ACTION), abs=1e-6)


def test_an_idm_on_another_base_reads_the_pictures(batch: Batch, picture: np.ndarray) -> None:
    other = InverseDynamics(make_tiny(seed=5))
    found = Reward.of(IDMLikelihood(other))(batch)
    assert found == pytest.approx(other.score(picture, [c.image for c in batch.candidates], ACTION), abs=1e-6)


def test_idm_margin_by_hand(batch: Batch, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    idm = InverseDynamics(tiny)
    edits = ["move the red circle right", "move the blue circle left", "move the red square left"]
    assert word_edits(ACTION) == edits
    # Four rivals at most: the word edits, then one sentence of the data set; the action itself is none.
    reward = IDMMargin(_Silent(idm), [ACTION.upper(), "remove all rings", "paint it"], num_rivals=4, floor=None)  # type: ignore[arg-type]
    expected = []
    for candidate in batch.candidates:
        words = (ACTION, *edits, "remove all rings")
        totals = [float(idm.log_probs(picture, [candidate], w)[0].sum()) for w in words]
        expected.append(totals[0] - np.logaddexp.reduce(totals))
    found = reward(batch.prompts, batch.source_image, batch.candidates)
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(expected) <= 0


class _Silent:
    """An inverse model that describes nothing, so that the rivals of a test are known."""

    def __init__(self, idm: InverseDynamics) -> None:
        self.idm = idm

    def describe(self, sources: list[Any], targets: list[Any]) -> list[str]:
        return [""] * len(sources)

    def log_probs(self, *arguments: Any) -> Any:
        return self.idm.log_probs(*arguments)


def test_rivals_never_name_the_same_outcome(batch: Batch, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    same = IDMMargin(InverseDynamics(tiny), num_rivals=8, same_outcome=lambda source, a, b: True)
    assert same._rivals(picture, ACTION, ["push it"]) == []
    assert same(batch.prompts, batch.source_image, batch.candidates) == [None] * 3
    some = IDMMargin(InverseDynamics(tiny), num_rivals=2)
    assert some._rivals(picture, ACTION, ["Move the red circle left!", "", "push it"])[0] == "push it"
    assert len(some._rivals(picture, ACTION, ["push it"])) == 2
    with pytest.raises(RewindError, match="at least one rival"):
        IDMMargin(InverseDynamics(tiny), num_rivals=0)


def test_keep_unchanged_by_hand() -> None:
    reward = KeepUnchanged({"move": 1}, default=3)
    source = [[1, 2, 3, 4]] * 3
    predicted = [[1, 2, 3, 4], [9, 9, 3, 4], [9, 9, 9, 9]]
    assert reward(predicted, source, ["move"] * 3) == [0.0, -0.25, -0.75]
    assert reward(predicted, source, [None, "other", "other"]) == [0.0, 0.0, -0.25]
    with pytest.raises(RewindError, match="0 or more"):
        KeepUnchanged(default=-1)


def test_candidates_know_their_backbone(batch: Batch, tiny: ChameleonVLM) -> None:
    assert all(isinstance(c, Candidate) and c.backbone is tiny for c in batch.candidates)


def test_a_margin_has_a_floor_and_equal_pictures_are_scored_once(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    target = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first, second = (
        Candidate(ids, np.zeros(4, np.float32), tiny) for ids in tiny.encode([picture, target]).cpu().numpy()
    )
    call = [ACTION] * 3, [picture] * 3, [second, first, second]
    free = IDMMargin(InverseDynamics(tiny), ["go"], num_rivals=4, floor=None)(*call)
    assert free[0] == free[2]
    low, high = sorted(value for value in free[:2] if value is not None)
    assert low < high
    between = (low + high) / 2
    bounded = IDMMargin(InverseDynamics(tiny), ["go"], num_rivals=4, floor=between)(*call)
    assert sorted(value for value in bounded[:2] if value is not None) == pytest.approx([between, high])
    with pytest.raises(RewindError, match="must be below 0"):
        IDMMargin(InverseDynamics(tiny), floor=0.5)
