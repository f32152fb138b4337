"""The studies, each from a tiny run of the main job: what they train, keep and write, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from conftest import ROOT
from safetensors.numpy import load_file
from script_runs import start, succeed

from rl import load_fdm, load_idm
from trainers.studies.alternation import ARMS, Amounts
from trainers.studies.search import CALIBRATION
from trainers.studies.shared import PROMPTS


def test_other_settings_of_grpo_from_the_same_start(demo: Path, tmp_path: Path) -> None:
    short = ["--settings", "max_steps=2", "learning_rate=3e-4", "num_iterations=2", "--cases", 3]
    shown = succeed("scripts/study_grpo.py", "--run", demo, *short, "--output", tmp_path / "study")
    assert "learning_rate 0.0003" in shown
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    assert found["candidates"] == 3 * 8  # two steps on one batch
    assert set(found["1.0"]) == {"success", "minimality"}
    assert load_fdm(tmp_path / "study").adapter is not None
    steps = ["--settings", "max_steps=1", "rollout_steps=3", "rollout_credit=trajectory", "num_generations=2"]
    steps += ["per_device_train_batch_size=12", "--cases", 3, "--chains", 4]
    shown = succeed("scripts/study_grpo.py", "--run", demo, *steps, "--output", tmp_path / "chains")
    assert "| chains after 1 | chains after 3 |" in shown
    found = json.loads((tmp_path / "chains" / "results.json").read_text())
    assert found["candidates"] == 12
    assert set(found["chains"]) == {"after 1", "after 3"}
    assert all(0 <= found["chains"][name]["before"] <= 1 for name in found["chains"])
    for flags, sentence in (
        (["--run", tmp_path], "give a run folder of demo.py"),
        (["--run", demo, "--cases", 0], "--cases must be at least 1"),
        (["--run", demo, "--settings", "learning_rte=1"], "GRPOConfig has no learning_rte"),
        (["--run", demo, "--settings", "num_generations=1"], "GRPOConfig cannot have {'num_generations': 1}"),
    ):
        wrong = start("scripts/study_grpo.py", *short, *flags, "--output", tmp_path / "study", "--overwrite")
        assert wrong.returncode == 2
        assert sentence in wrong.stderr
        assert (tmp_path / "study" / "results.json").is_file()  # bad input loses nothing


def test_the_study_of_search_on_two_runs(demo: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(demo, second)
    told = json.loads((second / "run.json").read_text())
    told["config"]["seed"] = 1
    (second / "run.json").write_text(json.dumps(told))
    page = tmp_path / "docs" / "search.md"
    few = ["--scenes", 2, "--candidates", 2, "--parts", "best_of_n"]
    both = ["scripts/study_search.py", "--runs", demo, second, "--second_idm", "judge_idm", *few]
    shown = succeed(*both, "--output", tmp_path / "study", "--page", page)
    assert page.read_text().strip() == shown.strip()
    found = json.loads(page.with_suffix(".json").read_text())
    assert found == json.loads((tmp_path / "study" / "results.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    names = [f"{name} {n}" for name in ("idm_likelihood", "idm_margin", "fitted", "ensemble", "oracle") for n in (1, 2)]
    for run in found["runs"]:
        cases = {name: values for name, values in run["cases"]["best_of_n"].items() if name not in CALIBRATION}
        assert list(cases) == names
        assert {len(values) for values in cases.values()} == {2}
    assert "| at N 2, by | seed 0, % | seed 1, % |" in shown
    assert f"--runs {demo} {second} --system sft --second_idm judge_idm --scenes 2" in shown
    wrong = start(*both, "--runs", demo, tmp_path, "--output", tmp_path / "other")
    assert (wrong.returncode, (tmp_path / "other").exists()) == (2, False)
    assert "give a run folder of demo.py" in wrong.stderr


def test_ways_to_improve_from_the_same_start(demo: Path, tmp_path: Path) -> None:
    # Two steps of GRPO, for the rate is 0 at the first one.
    short = [
        "--methods",
        "best_of_n",
        "dpo",
        "grpo",
        "grpo_trajectory",
        "--candidates",
        512,
        "--cases",
        3,
        "--validation",
        2,
    ]
    call = ["scripts/study_methods.py", "--runs", demo, *short, "--output", tmp_path / "study"]
    shown = succeed(*call)
    assert json.loads((tmp_path / "study" / "results.json").read_text())["amounts"]["validation"] == 2
    made = tmp_path / "study" / demo.name
    assert [row.split("`")[1] for row in shown.splitlines() if row.startswith("| ") and "`" in row] == [
        *("bootstrapped", "best_of_n", "dpo", "grpo", "grpo_trajectory"),
    ]
    starts = load_file(demo / "bootstrapped" / "adapter" / "adapter_model.safetensors")
    for name in ("best_of_n", "dpo", "grpo", "grpo_trajectory"):
        ends = load_file(made / name / "adapter" / "adapter_model.safetensors")
        assert any((ends[key] != starts[key]).any() for key in starts), name
        assert load_fdm(made / name).adapter is not None
    kept = (made / "dpo" / "measured.json").stat().st_mtime_ns
    first = (tmp_path / "study" / "results.md").read_text()
    succeed(*call, "--page", tmp_path / "page.md")
    assert (made / "dpo" / "measured.json").stat().st_mtime_ns == kept
    assert first == (tmp_path / "page.md").read_text()
    assert first in shown
    wrong = start("scripts/study_methods.py", "--runs", tmp_path, *short, "--output", tmp_path / "other")
    assert wrong.returncode == 2
    assert "give run folders of demo.py" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_an_alternation_at_equal_candidates_draws_as_many_as_the_forward_role_alone() -> None:
    amounts = Amounts(fdm_steps=64, idm_steps=40)
    alone = ARMS["fdm_alone"].steps(amounts)["fdm"] * PROMPTS["fdm"]
    both = ARMS["alternating_at_equal_candidates"].steps(amounts)
    assert both == {"fdm": 32, "idm": 16}
    assert sum(steps * PROMPTS[role] for role, steps in both.items()) == alone
    assert ARMS["alternating"].steps(amounts) == {"fdm": 64, "idm": 40}
    assert ARMS["alternating_at_equal_candidates"].steps(Amounts(fdm_steps=1)) == {"fdm": 1, "idm": 1}


def test_both_roles_in_turns_from_the_same_start(demo: Path, tmp_path: Path) -> None:
    # Two steps, for the rate is 0 at the first one.
    short = ["--arms", "fdm_alone", "alternating", "idm_by_sft", "better_idm", "--rounds", 1, "--fdm_steps", 2]
    short += ["--idm_steps", 2, "--cases", 3, "--validation", 2]
    call = ["scripts/study_alternation.py", "--runs", demo, *short, "--output", tmp_path / "study"]
    shown = succeed(*call, "--page", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() in shown
    made = tmp_path / "study" / demo.name
    assert "- `alternating` - `fdm_alone`, success, T 1: " in shown

    def weights(run: Path) -> dict[str, np.ndarray]:
        return load_file(run / "adapter" / "adapter_model.safetensors")

    def same(first: Path, second: Path) -> bool:
        a, b = weights(first), weights(second)
        return all((a[key] == b[key]).all() for key in a)

    rounds = {name: made / name / "round-1" for name in ("fdm_alone", "alternating", "idm_by_sft", "better_idm")}
    assert same(rounds["alternating"] / "fdm", rounds["fdm_alone"] / "fdm")  # in the first round the IDM is the same
    assert not same(rounds["better_idm"] / "fdm", rounds["fdm_alone"] / "fdm")
    assert not same(rounds["fdm_alone"] / "fdm", demo / "bootstrapped")
    assert not (rounds["fdm_alone"] / "idm").exists()
    for name in ("alternating", "idm_by_sft"):
        assert not same(rounds[name] / "idm", demo / "idm"), name
        assert load_idm(rounds[name] / "idm").adapter is not None
    kept = (made / "alternating" / "round-1" / "measured.json").stat().st_mtime_ns
    succeed(*call)
    assert (made / "alternating" / "round-1" / "measured.json").stat().st_mtime_ns == kept
    wrong = start(*call[:3], *short[:1], "turns", "--output", tmp_path / "other")
    assert (wrong.returncode, (tmp_path / "other").exists()) == (2, False)
    assert "no arm turns: there are fdm_alone" in wrong.stderr


def test_imitation_against_reward_on_the_same_labels(demo: Path, tmp_path: Path) -> None:
    tmp_path = Path(os.path.relpath(tmp_path, ROOT))  # scripts start there: what they write must not depend on it
    # Two steps of GRPO, for the rate is 0 at the first one.
    short = ["--sizes", 2, 4, "--grpo_steps", 2, "--cases", 3, "--validation", 2]
    call = ["scripts/study_imitation.py", "--runs", demo, *short, "--output", tmp_path / "study"]
    shown = succeed(*call, "--page", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() in shown
    assert "- 4 pairs, `grpo` - `merged`, success, T 1: " in shown
    made, start_of_all = (
        tmp_path / "study" / demo.name,
        load_file(demo / "sft" / "adapter" / "adapter_model.safetensors"),
    )
    arms = {f"{arm}-{size}" for arm in ("continued", "merged", "grpo", "merged_grpo") for size in (2, 4)}
    assert {folder.name for folder in made.iterdir()} == arms | {"start"}
    ends = {name: load_file(made / name / "adapter" / "adapter_model.safetensors") for name in arms}
    for name, end in ends.items():
        assert any((end[key] != start_of_all[key]).any() for key in end), name
    moved = [
        sum(float(((ends[f"merged_grpo-{size}"][k] - v) ** 2).sum()) for k, v in ends[f"merged-{size}"].items())
        for size in (2, 4)
    ]
    assert all(0 < one < 1 for one in moved)  # GRPO of a size begins where `merged` of that size ended
    kept = (made / "merged-4" / "measured.json").stat().st_mtime_ns
    succeed(*call)
    assert (made / "merged-4" / "measured.json").stat().st_mtime_ns == kept
    wrong = start(*call[:3], "--sizes", 10**6, "--output", tmp_path / "other")
    assert (wrong.returncode, (tmp_path / "other").exists()) == (2, False)
    assert "selected labels, give at most that" in wrong.stderr
