"""The reward contract: what a function is given, what it may answer, and how rewards are named and summed."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards import BUILT_IN, NEEDS_IDM, Batch, Reward, load_rewards, score
from rewards.target_distance import TargetDistance
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Candidate

ACTION = "move the red circle left"


@pytest.fixture
def batch(tiny: ChameleonVLM, picture: np.ndarray) -> Batch:
    candidates = ForwardDynamics(tiny).sample(picture, ACTION, 3, seed=1)
    return Batch([ACTION] * 3, candidates, [picture] * 3, task=["move"] * 3)


def test_a_function_gets_what_it_names_and_no_more(batch: Batch) -> None:
    got: dict[str, Any] = {}

    def by_ids(predicted_ids: Any, source_ids: Any, task: Any, **_: Any) -> list[float]:
        got.update(predicted_ids=predicted_ids, source_ids=source_ids, task=task, rest=_)
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


def _idm_needed(path: str) -> bool:
    module, _, name = path.partition(":")
    parameter = inspect.signature(getattr(importlib.import_module(module), name)).parameters.get("idm")
    return parameter is not None and parameter.default is parameter.empty


def raises(prompts: Any, **_: Any) -> list[float]:
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (raises, r"the reward 'raises' failed on candidate 0 \('move the red circle left'\): ZeroDivisionError: boom"),
        (lambda prompts: [1.0], "gave 1 scores for 3 candidates"),
        (lambda prompts: [1.0, math.nan, 0.0], "gave nan for candidate 1"),
        (lambda prompts: ["high"] * 3, "must return a list of numbers or None"),
        (lambda prompts: 3, "must return a list of numbers or None"),
        (lambda prompts: None, "returned None instead of a list .* is its 'return' missing"),
        (lambda prompts: "123", "must return a list of numbers or None: not '123'"),
        (lambda prompts: {0: 1.0, 1: 1.0, 2: 1.0}, "must return a list of numbers or None"),
        (lambda prompts: [0.0, 0.0, -math.inf], "gave -inf for candidate 2"),
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
        (max, "does not say what it asks for"),
    ],
)
def test_a_signature_that_cannot_be_met(function: Any, sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence):
        Reward.of(function).on([])


def test_a_failure_names_the_sample_and_keeps_the_traceback(batch: Batch) -> None:
    last = batch.predicted_ids[2]
    assert last not in batch.predicted_ids[:2]

    def picky(predicted_ids: list[list[int]], log_metric: Any) -> list[float]:
        log_metric("asked", float(len(predicted_ids)))
        return [{True: 1.0}[ids != last] for ids in predicted_ids]

    line = picky.__code__.co_firstlineno + 2

    def compares(prompts: list[str], predicted_ids: list[list[int]]) -> list[float]:
        return [predicted_ids[1][0] / 0 for _ in prompts]

    def refuses(prompts: list[str]) -> list[float]:
        raise RewindError("no endpoint answers: start it")

    logged: list[float] = []
    batch.log_metric = lambda name, value: logged.append(value)
    with pytest.raises(
        RewindError, match=r"the reward 'picky' failed on candidate 2 \('move .*'\): KeyError"
    ) as caught:
        Reward.of(picky)(batch)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__cause__.__traceback__ is not None
    assert logged == [3.0]  # looking for the sample logs nothing
    with pytest.raises(RewindError, match=rf"KeyError: False \({__file__}, line {line}\)$"):
        Reward.of(picky)(batch)
    with pytest.raises(RewindError, match=r"'compares' failed on 3 .* on none of them alone: Zero"):
        Reward.of(compares)(batch)  # alone it fails for want of a second one
    with pytest.raises(RewindError, match="failed on 3 candidates together, though on none of them alone: Mem"):
        Reward.of(large)(batch)
    with pytest.raises(RewindError, match="the reward 'refuses' failed: no endpoint answers: start it"):
        Reward.of(refuses)(batch)


def test_scores_may_come_as_any_sequence_of_numbers(batch: Batch) -> None:
    for answer in ((0.0, 1.0, 2.0), np.arange(3), torch.arange(3.0), (float(i) for i in range(3))):
        assert Reward.of(lambda prompts, answer=answer: answer, "numbers")(batch) == [0.0, 1.0, 2.0]


def large(prompts: list[str]) -> list[float]:
    if len(prompts) > 1:
        raise MemoryError("too many at once")
    return [0.0]


def test_async_rewards(batch: Batch) -> None:
    async def slow(prompts: list[str]) -> list[float]:
        return list(await asyncio.gather(*(one(number) for number in range(len(prompts)))))

    async def one(number: int) -> float:
        await asyncio.sleep(0.01 * (3 - number))
        return float(number)

    class Judge:
        async def __call__(self, completions: list[Any]) -> list[float]:
            return await slow([""] * len(completions))

    async def broken(prompts: list[str]) -> list[float]:
        raise TimeoutError("no answer")

    async def in_a_notebook() -> list[float | None]:
        return Reward.of(slow)(batch)  # a loop is running

    assert Reward.of(slow)(batch) == Reward.of(Judge())(batch) == [0.0, 1.0, 2.0]
    assert asyncio.run(in_a_notebook()) == [0.0, 1.0, 2.0]
    with pytest.raises(RewindError, match=r"the reward 'broken' failed on candidate 0 .*TimeoutError: no answer"):
        Reward.of(broken)(batch)


def test_pictures_are_decoded_once_and_together(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    vlm = batch.candidates[0].backbone
    whole = type(vlm).decode
    monkeypatch.setattr(type(vlm), "decode", lambda self, ids, **k: decoded.append(len(ids)) or whole(self, ids, **k))
    rewards = [Reward.of(lambda completions: [0.0] * 3, name) for name in ("first", "second")]
    score([*rewards, Reward.of(TargetDistance("pixels"))], batch)
    assert decoded == [3]
    assert all(c.image is picture for c, picture in zip(batch.candidates, batch.completions, strict=True))


def test_terms_are_normalised_within_their_group(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    drawn = ForwardDynamics(tiny).sample([picture, picture], [ACTION, "remove all rings"], 3)
    batch = Batch([ACTION] * 3 + ["remove all rings"] * 3, [*drawn[0], *drawn[1]], [picture] * 6)
    large = Reward.of(lambda prompts: [100.0, 200.0, 300.0, 7.0, 7.0, 7.0], "large")
    small = Reward.of(lambda prompts: [0.03, 0.02, 0.01, 0.0, 0.4, None], "small", 2.0)
    found = [s.total for s in score([large, small], batch, normalise=True)]
    # Standard deviations 100, 0.01 and, of the two that can be scored, 0.4 / sqrt(2); 1e-4 is added to each.
    one, two, three = 100 / (100 + 1e-4), 0.01 / (0.01 + 1e-4), 0.2 / (0.4 / math.sqrt(2) + 1e-4)
    assert found[:5] == pytest.approx([-one + 2 * two, 0.0, one - 2 * two, -2 * three, 2 * three], abs=1e-6)
    assert found[5] is None
    plain = score([large, small], batch)
    assert [s.total for s in plain] == pytest.approx([100.06, 200.04, 300.02, 7.0, 7.8, None])
    assert [s.scores for s in plain] == [s.scores for s in score([large, small], batch, normalise=True)]


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
    assert {name for name, made in BUILT_IN.items() if _idm_needed(made)} == NEEDS_IDM


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [
        (
            "idm_margins",
            "there is no reward 'idm_margins', did you mean 'idm_margin': the built-in ones are ",
        ),
        ("idm_margin=much", "the weight in 'idm_margin=much' is no number"),
        ("idm_margin=nan", "must be a number, not nan"),
        ("idm_likelihood", "needs an inverse model: give --idm"),
        ("none.py:f", "there is no file none.py"),
        ("FILE:f", "does not import: ZeroDivisionError"),
        ("json:f", "json has no 'f'; it has "),
        ("mine.py", "'mine.py' names no function: write mine.py:FUNCTION"),
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


def test_candidates_know_their_backbone(batch: Batch, tiny: ChameleonVLM) -> None:
    assert all(isinstance(c, Candidate) and c.backbone is tiny for c in batch.candidates)
