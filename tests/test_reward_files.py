"""Rewards as users bring them: files with helpers, packages of the working folder, modules, partials, columns."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, make_tiny
from test_grpo import low_tokens, trainer, triplets

from rewards import Batch, Reward, load_rewards, score, scorers
from rl import rerank
from rl.data.candidates.store import CandidateStore
from rl.data.triplet_files import write_triplets
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics
from rl.triplets import Triplet, columns_of
from trainers.common.candidates import batch_of, scored_groups, stored_groups
from trainers.grpo.trainer import WorldModelGRPOTrainer

ACTION = "move the red circle left"


@pytest.fixture(autouse=True)
def _path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def batch(tiny: ChameleonVLM, picture: np.ndarray) -> Batch:
    candidates = ForwardDynamics(tiny).sample(picture, ACTION, 3, seed=1)
    return Batch([ACTION] * 3, candidates, [picture] * 3, task=["move"] * 3)


def decoded(batch: Batch) -> bool:
    return any("image" in vars(candidate) for candidate in batch.candidates)


# ---- files and modules


def test_a_helper_beside_a_reward_file(tmp_path: Path, batch: Batch) -> None:
    text = "import helper\ndef f(prompts):\n    import late\n    return [helper.LEVEL + late.MORE] * len(prompts)\n"
    for name, level in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"LEVEL = {level}\n")
        (tmp_path / name / f"{name}.py").write_text(text)
    (tmp_path / "a" / "late.py").write_text("MORE = 0.5\n")
    (tmp_path / "a" / "colorsys.py").write_text("raise ZeroDivisionError\n")  # a library that is imported later
    first, second = (load_rewards(f"{tmp_path / name / name}.py:f")[0] for name in ("a", "b"))
    assert (first(batch), second(batch)) == ([1.5] * 3, [2.5] * 3)  # each has its own helper
    sys.modules.pop("colorsys", None)
    __import__("colorsys")


def test_a_package_of_the_working_folder(tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mypkg_of_the_test", "rewards"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "r.py").write_text("def f(prompts): return [3.0] * len(prompts)\n")
    monkeypatch.chdir(tmp_path)
    assert load_rewards("mypkg_of_the_test.r:f=0.5")[0](batch) == [3.0] * 3
    with pytest.raises(RewindError, match=r"'rewards' is a package of Rewind's: give the file, rewards/r.py:f"):
        load_rewards("rewards.r:f")
    assert load_rewards("rewards/r.py:f")[0](batch) == [3.0] * 3


OWN = """
from __future__ import annotations
import dataclasses, functools
import torch
runs = []

@dataclasses.dataclass
class Level:
    value: float = 1.0
    def __call__(self, prompts): return [self.value] * len(prompts)

class Net(torch.nn.Module):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale, self.drop = torch.nn.Parameter(torch.tensor(float(scale))), torch.nn.Dropout(0.9)
    def forward(self, predicted_ids):
        assert not torch.is_grad_enabled()
        return self.drop(self.scale.expand(len(predicted_ids), 1))

ready = Net(4.0)

def timed(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

@timed
def hidden(completions, **kwargs): return [float(image.size[0]) for image in completions]

@timed
def strict(completions): return [0.0 for _ in completions]

def flat(prompts, level=1.0, **_):
    runs.append(level)
    return [level] * len(prompts)

half = functools.partial(flat, level=0.5)
double = lambda prompts: [2.0] * len(prompts)
def count(prompts): return [float(len(runs))] * len(prompts)
"""


def test_every_kind_of_callable_of_a_file(tmp_path: Path, batch: Batch) -> None:
    folder = tmp_path / "lr=1"
    folder.mkdir()
    (folder / "own.py").write_text(OWN)
    names = ["Level", "Net", "ready", "hidden", "flat", "half", "double", "count"]
    rewards = load_rewards([f"{folder / 'own.py'}:{name}" for name in names], arguments={"Net": {"scale": 3}})
    assert [(reward.name, reward.weight) for reward in rewards] == [(name, 1.0) for name in names]
    found = {reward.name: reward(batch)[0] for reward in rewards}
    # `count` sees what `flat` and `half` have noted: the file was run once.
    wanted = {"Level": 1, "Net": 3, "ready": 4, "hidden": 32, "flat": 1, "half": 0.5, "double": 2, "count": 2}
    assert found == wanted
    with pytest.raises(RewindError, match=r"unexpected keyword argument .* put functools.wraps into the decorator"):
        load_rewards(f"{folder / 'own.py'}:strict")[0](batch)
    with pytest.raises(RewindError, match="has no 'flatt', did you mean 'flat'; it has "):
        load_rewards(f"{folder / 'own.py'}:flatt")


def test_the_weight_is_the_number_behind_the_last_equals_sign(tmp_path: Path, batch: Batch) -> None:
    folder = tmp_path / "lr=1" / "beta=0.1"
    folder.mkdir(parents=True)
    (folder / "own.py").write_text("def f(prompts): return [1.0] * len(prompts)\n")
    for end, weight in (("", 1.0), ("=0.5", 0.5), ("=-2e-1", -0.2)):
        (reward,) = load_rewards(f"{folder / 'own.py'}:f{end}")
        assert (reward.name, reward.weight, reward(batch)) == ("f", weight, [1.0] * 3)
    for wrong in (f"{folder / 'own.py'}:f=much", "copy_penalty=", "copy_penalty=1=x"):
        with pytest.raises(RewindError, match=r"is no number: write NAME=0\.5"):
            load_rewards(wrong)
    with pytest.raises(RewindError, match="names no function"):
        load_rewards(str(folder / "own.py"))


def test_callables_without_names(batch: Batch) -> None:
    def flat(prompts: list[str], level: float) -> list[float]:
        return [level] * len(prompts)

    parts = [functools.partial(flat, level=level) for level in (1.0, 2.0)]
    lambdas = [lambda prompts: [3.0] * 3, lambda prompts: [4.0] * 3]
    rewards = load_rewards([*parts, *lambdas, torch.nn.Identity])
    assert [reward.name for reward in rewards] == ["flat", "flat_2", "lambda", "lambda_2", "Identity"]
    assert [reward(batch)[0] for reward in rewards[:4]] == [1.0, 2.0, 3.0, 4.0]
    assert load_rewards(flat)[0].name == "flat"
    with pytest.raises(RewindError, match="the reward 'flat' is given twice"):
        load_rewards([flat, flat])


# ---- columns


def with_columns(batch: Batch, *rows: dict[str, Any]) -> Batch:
    return Batch(batch.prompts, batch.candidates, batch.source_image, task=batch.task, more=rows)


def test_columns_of_the_data_come_by_name(batch: Batch) -> None:
    data = with_columns(batch, {"mask": [1, 2], "level": 5}, {"mask": [3]}, {})
    got: dict[str, Any] = {}

    def f(mask: Any, completion_ids: Any, level: float = 1.0, depth: int = 7, **_: Any) -> list[float]:
        got.update(mask=mask, ids=completion_ids, level=level, depth=depth, rest=_)
        return [0.0] * len(mask)

    assert Reward.of(f)(data) == [0.0] * 3
    assert got.pop("ids") is data.predicted_ids
    assert got == {"mask": [[1, 2], [3], None], "level": [5, None, None], "depth": 7, "rest": {}}
    Reward.of(functools.partial(f, level=2.0))(data)
    assert got["level"] == 2.0  # what is bound stays
    (reward,) = load_rewards([f], columns=["mask"])
    assert reward(with_columns(batch, {}, {}, {})) == [0.0] * 3  # a part of the data that has none
    assert got["mask"] == [None] * 3
    assert not decoded(batch)


def test_unknown_columns_are_refused_once(batch: Batch, tmp_path: Path) -> None:
    def f(masks: Any) -> list[float]:
        raise AssertionError("never asked")

    sentence = r"asks for 'masks', which there is not, did you mean 'mask'; .*, and from these data for mask, depth;"
    with pytest.raises(RewindError, match=sentence):
        load_rewards([f], columns=["mask", "depth"])
    with pytest.raises(RewindError, match=sentence):
        Reward.of(f)(with_columns(batch, {"mask": 1, "depth": 2}, {}, {}))
    with pytest.raises(RewindError, match=r"asks for 'masks', which there is not.* prompts, .* nothing beside"):
        trainer(tmp_path, [Reward.of(f)])


def test_keyword_arguments_get_what_costs_nothing(batch: Batch) -> None:
    data, got = with_columns(batch, *[{"mask": 1, "task": "hidden"}] * 3), {}

    def by_ids(predicted_ids: Any, **kwargs: Any) -> list[float]:
        got.update(kwargs)
        return [0.0] * len(predicted_ids)

    def blind(prompts: Any, **kwargs: Any) -> list[float]:
        return [float(np.asarray(image).mean()) for image in kwargs["completions"]]

    Reward.of(by_ids)(data)
    assert set(got) == {"prompts", "completion_ids", "source_image", "task", "mask", "log_metric", "trainer_state"}
    assert (got["mask"], got["task"]) == ([1] * 3, ["move"] * 3)  # our column goes before the data's
    assert not decoded(batch)
    assert "target_image" not in Reward.of(by_ids).on([]).asks_for  # who predicts does not have it
    assert Reward.of(blind)(data) == [float(np.asarray(c.image).mean()) for c in batch.candidates]


def masked(predicted_ids: list[list[int]], mask: list[float | None]) -> list[float | None]:
    return [None if weight is None else weight * (ids[0] % 7) for ids, weight in zip(predicted_ids, mask, strict=True)]


def test_columns_reach_rewards_in_every_loop(tmp_path: Path, picture: np.ndarray) -> None:
    """Drawing for best-of-N and DPO, rescoring what was stored, and GRPO; the data with and without the column."""
    vlm, rewards = make_tiny(), [Reward.of(masked)]
    data = [Triplet(picture, ACTION, more={"mask": m, "id": i}) for i, m in enumerate((2.0, 3.0))]
    data.append(Triplet(picture, "remove all rings"))
    store = CandidateStore(tmp_path / "candidates", None, scorers(rewards))
    drawn = list(scored_groups(ForwardDynamics(vlm), rewards, data, 2, store=store, chunk_size=1))
    totals = [[s.total for s in group] for _, group in drawn]
    assert [2 * total / 3 for total in totals[1]] == totals[0]  # the same source and action, another mask
    assert totals[0] != [0.0, 0.0]
    assert totals[2] == [None, None]
    assert score(rewards, batch_of([(data[0], [s.candidate for s in drawn[0][1]])]))[1].total == totals[0][1]
    for name in ("masked", "again"):  # known, and asked anew
        read = list(stored_groups([str(store.folder)], vlm, [Reward.of(masked, name)], None))
        assert [[s.scores[name] for s in group] for _, group in read] == totals
        assert [triplet.more for triplet, _ in read] == [{"mask": 2.0, "id": 0}, {"mask": 3.0, "id": 1}, {}]
    rows = [Triplet(t.source, t.action, more={"mask": float(n)}) for n, t in enumerate(triplets(8))]
    assert columns_of(rows) == ["mask"]
    plain = trainer(tmp_path, [Reward.of(low_tokens)])
    run = WorldModelGRPOTrainer(plain.vlm, rows, rewards, plain.args)
    run._generate_and_score_completions([{"prompt": str(n)} for n in (1, 1, 1, 1, 2, 2, 2, 2)])
    firsts = [float(s.candidate.ids[0] % 7) for s in run.last_scored]
    assert [s.total for s in run.last_scored] == [1 * x for x in firsts[:4]] + [2 * x for x in firsts[4:]]


def test_rerank_hands_columns_on(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm = ForwardDynamics(tiny)
    one = rerank(fdm, None, picture, ACTION, 2, [masked], more={"mask": 2.0})
    many = rerank(fdm, None, [picture] * 2, [ACTION] * 2, 2, [masked], more=[{"mask": 4.0}, {}])
    assert [2 * s.total for s in one.candidates] == [s.total for s in many[0].candidates]  # type: ignore[operator]
    assert many[1].abstained
    with pytest.raises(RewindError, match="asks for 'mask', which there is not"):
        rerank(fdm, None, picture, ACTION, 2, [masked])
    with pytest.raises(RewindError, match="2 targets and 1 rows of further columns do not fit"):
        rerank(fdm, None, [picture] * 2, [ACTION] * 2, 2, [masked], more=[{"mask": 1.0}])


def test_a_script_takes_them_all(tmp_path: Path) -> None:
    """From another folder: a package there, a helper beside a file with '=' in its path, and a column."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    rows = [Triplet(a, ACTION, b, more={"mask": 0.25}) for a, b in zip(pictures[:2], pictures[2:], strict=True)]
    write_triplets(rows, tmp_path / "data")
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "r.py").write_text("def f(mask, **kwargs): return [m + len(kwargs['task']) for m in mask]\n")
    (tmp_path / "lr=1").mkdir()
    (tmp_path / "lr=1" / "level.py").write_text("VALUE = 2\n")
    (tmp_path / "lr=1" / "my.py").write_text("from level import VALUE\ndef g(prompts): return [VALUE] * len(prompts)\n")
    (tmp_path / "c.yaml").write_text("fdm: tabletop-chameleon\ntriplets: data/triplets.json\n")
    flags = ["--config", "c.yaml", "--output", "out", "--rewards", "mypkg.r:f", "lr=1/my.py:g=0.5"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "evaluate.py", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["average"]["rewards"]
    assert {name: said["mean"] for name, said in found.items()} == {"f": 6.25, "g": 2.0}
