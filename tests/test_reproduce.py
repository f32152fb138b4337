"""Several seeds of the main job: one file a seed that is reused, their mean by hand, the page of tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from script_runs import succeed
from test_demo import TINY
from test_pretraining import arguments

from rl.errors import RewindError
from rl.evaluation.intervals import mean_of_runs, paired_difference
from trainers.pretraining.recipe import make_base
from trainers.studies import reproduce
from trainers.studies.demo import stages
from trainers.studies.demo.story import Budget, with_changes
from trainers.studies.reproduce_page import page_of


def premise_of(seed: int) -> dict[str, Any]:
    """Sentences differ from seed to seed, and so does how many there are."""
    verdicts = ["label video", "train"] if seed else ["label video"]
    idm = {"exact": 0.5, "confused": [["left", "right", seed]] * (seed + 1)}
    return {"video": "go", "min_score": None if seed else -1.0, "verdicts": verdicts, "idm": idm}


def seed_file(seed: int, success: float) -> dict[str, Any]:
    """What a seed leaves, with numbers that can be checked by hand."""
    m = {"success": success, "n": 10, "ci95": [0.0, 1.0], "judge": 4.0, "minimality": 5.0, "copy_rate": 0.1}
    m |= {"best_temperature": 0.3, "success_at_best_temperature": success}
    results = {
        "world": "tabletop",
        "seed": seed,
        "seconds": {"total": 60.0},
        "data": {"test": 10, "label_accuracy": 0.5, "premise": premise_of(seed)},
        "idm": {"exact_match": 0.6},
        "ceiling": {"tokenizer": {"success": 1.0}},
        "fdm": {"sft": m},
        "paired": {"idm-sft": {"success": [0.0, 0.0, 0.0]}},
        "best_of_n": {"sft": {"1": success, "2": success}},
        "best_of_n_mix": {"sft": {"1": success, "2": success}},
        "best_of_n_oracle": {"sft": {"1": success, "2": success}},
        "grpo": {"kl": float(seed)},
    }
    differences = {"idm-sft": {"success": [1.0 - success] * 10}}
    versions = {"python": "3.11", "torch": "2"}
    return {"results": results, "differences": differences, "versions": versions, "config": {"budget": {"test": 10}}}


def test_mean_of_seeds_by_hand() -> None:
    files = [seed_file(0, 0.2), seed_file(1, 0.4)]
    found = reproduce.taken_together(files)
    assert [one["seed"] for one in found["seeds"]] == [0, 1]
    mean = found["mean"]
    assert mean["fdm"]["sft"]["success"] == pytest.approx(0.3)
    assert mean["fdm"]["sft"]["ci95"] == pytest.approx([0.1455, 0.5190], abs=1e-3)  # 6 of 20, Wilson
    assert mean["paired"]["idm-sft"]["success"] == pytest.approx([0.7, 0.7, 0.7])
    assert mean["grpo"]["kl"] == 0.5
    assert mean["data"]["premise"] == {"video": "go", "min_score": None, "verdicts": None, "idm": {"exact": 0.5}}
    page = page_of({"chameleon": found}, {"chameleon": files}, "make reproduce")
    assert "| `sft` | 30.0 % | 14.5 - 51.9 | 20.0 % | 40.0 % |" in page
    assert "better: +70.0 points" in page


def test_interval_of_several_runs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(100), 1 + rng.random(400)
    mean, low, high = mean_of_runs([first, second])
    assert mean == pytest.approx((first.mean() + second.mean()) / 2)
    error = np.sqrt(first.var() / 100 + second.var() / 400) / 2  # the cases of a run vary, the runs do not
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert mean_of_runs([first]) == paired_difference(first, np.zeros(100))
    for wrong in ([], [[1.0], []]):
        with pytest.raises(RewindError, match="at least one run"):
            mean_of_runs(wrong)


def test_amounts_can_be_changed() -> None:
    changed = with_changes(Budget(), ["test=7", "sft_learning_rate=1e-3"])
    assert (changed.test, changed.sft_learning_rate) == (7, 1e-3)
    assert with_changes(Budget(), ["grpo_keep=0"]).grpo_keep == 0
    for wrong in ("tests=7", "test=1.5", "test", "test=0", "grpo_confidence=-1"):
        with pytest.raises(RewindError):
            with_changes(Budget(), [wrong])
    with pytest.raises(RewindError, match="there are chameleon; of others give a --base"):
        reproduce.config_of("emu", 0, Budget())


def test_committed_seeds_are_those_of_the_recipe() -> None:
    """So that `make reproduce` runs none of them again."""
    for seed in range(3):
        kept = json.loads((ROOT / "docs" / "results" / f"chameleon-{seed}.json").read_text())
        assert kept["config_hash"] == reproduce.hash_of(reproduce.config_of("chameleon", seed, reproduce.BUDGET))


def test_young_amounts_are_told_where_they_do_something() -> None:
    """So that what was made or begun before them keeps its config."""
    before = with_changes(reproduce.BUDGET, ["bootstrapped_steps=0", "continued_steps=0"])
    told = [reproduce.config_of("chameleon", 0, budget)["budget"] for budget in (before, reproduce.BUDGET)]
    assert told[1].keys() - told[0].keys() == {"bootstrapped_steps", "continued_steps", "continued_learning_rate"}
    assert before.told().keys() == told[0].keys() | {"bootstrapped_steps"}  # as the demo tells it
    assert {"bootstrapped_continued"} == reproduce.BUDGET.expected().keys() - before.expected().keys()
    assert reproduce.BUDGET.expected()["bootstrapped"] > 3 * before.expected()["bootstrapped"]
    assert reproduce.BUDGET.expected()["sft"] == before.expected()["sft"]


def test_those_that_learn_from_video_may_take_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, int] = {}
    monkeypatch.setattr(stages, "_sft", lambda story, name, role, both, steps, *_: taken.update({name: steps}))
    for budget in (Budget(fdm_steps=3), Budget(fdm_steps=3, bootstrapped_steps=7)):
        story = SimpleNamespace(stage=lambda *_: None, budget=budget, labelled=[], synthetic=[1])
        stages.bootstrap(story)  # type: ignore[arg-type]
        assert taken == {"bootstrapped": budget.bootstrapped_steps or 3}


def test_a_row_of_as_long_takes_the_place_of_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, int] = {}
    monkeypatch.setattr(stages, "_sft", lambda story, name, role, both, steps, *_: taken.update({name: steps}))
    for equal, row in ((0, {"sft_twice_as_long": 6}), (8, {"sft_equal_compute": 8})):
        taken.clear()
        budget = Budget(fdm_steps=3, idm_steps=2, equal_compute_steps=equal)
        stages.train_roles(SimpleNamespace(stage=lambda *_: None, budget=budget, labelled=[]))  # type: ignore[arg-type]
        assert taken == {"idm": 2, "sft": 3, **row}
        assert row.keys() == {"sft_twice_as_long", "sft_equal_compute"} & budget.expected().keys()


def test_a_second_family_by_its_base(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match=r"there is no .* that names a family"):
        reproduce.family_of(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rewind.json").write_text('{"family": "chameleon"}')
    with pytest.raises(RewindError, match="whose results are those of the shipped tabletop-chameleon"):
        reproduce.family_of(str(tmp_path))
    (tmp_path / "rewind.json").write_text('{"family": "liquid"}')
    assert reproduce.family_of(str(tmp_path)) == "liquid"
    ours = reproduce.config_of("liquid", 0, Budget(), str(tmp_path))
    assert "judge" not in ours  # the job trains one
    shipped = reproduce.config_of("chameleon", 0, Budget())
    assert shipped == reproduce.config_of(reproduce.family_of("tabletop-chameleon"), 0, Budget(), "tabletop-chameleon")
    assert ours["base"] != shipped["base"]


def test_the_page_keeps_the_other_families(tmp_path: Path) -> None:
    for family, seed in (("chameleon", 10), ("chameleon", 2), ("liquid", 0)):
        made = seed_file(seed, 0.5)
        made["config"] |= {"family": family, "seed": seed}
        (tmp_path / f"{family}-{seed}.json").write_text(json.dumps(made))
    (tmp_path / "results.json").write_text("{}")
    (found,) = reproduce.of_other_families(tmp_path, "liquid").items()
    assert (found[0], [one["config"]["seed"] for one in found[1]]) == ("chameleon", [2, 10])
    assert set(reproduce.of_other_families(tmp_path, "emu3")) == {"chameleon", "liquid"}


@pytest.mark.slow
def test_a_finished_seed_is_reused_and_another_budget_runs_again(tmp_path: Path) -> None:
    budget = [f"{flag.removeprefix('--')}={value}" for flag, value in zip(TINY[::2], TINY[1::2], strict=True)]
    budget += [
        "equal_compute_steps=2",
        "bootstrapped_steps=3",
        "continued_steps=2",
        "proposer_steps=2",
        "idm_on_video_steps=2",
        "searched=6",
        "candidates=4",
        "fitted_candidates=4",
    ]
    places = ["--output", tmp_path / "runs", "--results", tmp_path / "results", "--seeds", 0]
    succeed("scripts/reproduce.py", *places, "--budget", *budget)
    file = tmp_path / "results" / "chameleon-0.json"
    first = file.read_text()
    mean = json.loads((tmp_path / "runs" / "results.json").read_text())["chameleon"]["mean"]
    assert mean["data"]["test"] == 6
    assert {"sft_equal_compute", "bootstrapped_continued"} <= mean["fdm"].keys()
    assert "sft_twice_as_long" not in mean["fdm"]
    assert "bootstrapped_continued-bootstrapped" in mean["paired"]
    assert "## chameleon" in (tmp_path / "results.md").read_text()
    before = file.stat().st_mtime_ns
    succeed("scripts/reproduce.py", *places, "--budget", *budget)
    assert (file.stat().st_mtime_ns, file.read_text()) == (before, first)
    base = tmp_path / "liquid"
    make_base(arguments(base, family="liquid", tokenizer_from=Path("tabletop-chameleon"), tokenizer_steps=0))
    succeed("scripts/reproduce.py", *places, "--base", base, "--budget", *budget)
    assert set(json.loads((tmp_path / "runs" / "results.json").read_text())) == {"chameleon", "liquid"}
    assert (tmp_path / "results.md").read_text().index("## chameleon") < (
        (tmp_path / "results.md").read_text().index("## liquid")
    )
