"""The main job at a tiny budget: what it writes, that an interrupted run ends alike, a world of one's own."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_scripts import start, succeed

from rl import load_fdm, load_idm
from rl.data.triplet_files import read_triplets
from rl.evaluation.ranking import auc
from trainers.studies.demo.mixes import grpo_rewards
from trainers.studies.demo.report import how_sure
from trainers.studies.grpo_settings import rewards_of, start_of
from trainers.studies.search import CALIBRATION

TINY = ["--labelled", 40, "--videos", 6, "--selected", 4, "--test", 6, "--validation", 20, "--idm_steps", 2]
TINY += ["--fdm_steps", 2, "--grpo_steps", 2, "--grpo_prompts", 3, "--best_of_n_steps", 2]
M = {"success", "editing", "minimality", "judge", "copy_rate", "n", "ci95"}
M |= {"best_temperature", "success_at_best_temperature"}
D = {"success", "judge", "copy_rate", "minimality", "success_at_best_temperature"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "run"
    shown = succeed("scripts/demo.py", *TINY, "--output", output)
    assert "best of N by the IDM, grpo" in shown
    return output


def results_of(output: Path) -> dict[str, Any]:
    found = json.loads((output / "results.json").read_text())
    assert isinstance(found, dict)
    return found


def test_results_have_the_promised_keys(demo: Path) -> None:
    found = results_of(demo)
    assert list(found) == [
        *("world", "seed", "seconds", "data", "idm", "ceiling", "fdm", "paired"),
        *("best_of_n", "best_of_n_mix", "best_of_n_oracle", "grpo"),
    ]
    systems = ["base", "sft", "sft_twice_as_long", "bootstrapped", "best_of_n_training", "grpo"]
    systems += ["bootstrapped_and_reranked", "trained_and_reranked"]
    assert list(found["fdm"]) == systems
    assert all(set(m) == M for m in found["fdm"].values())
    assert {"success", "editing", "minimality", "judge", "n", "ci95"} <= set(found["ceiling"]["tokenizer"])
    compared = ("bootstrapped-sft", "grpo-bootstrapped", "best_of_n_training-bootstrapped", "trained_and_reranked-sft")
    for name in compared:
        assert set(found["paired"][name]) == D
        assert all(low <= d <= high for d, low, high in found["paired"][name].values())
    assert set(found["paired"]["idm-sft"]) == {"success"}
    for name in ("best_of_8-best_of_1", "best_of_8_mix-best_of_1"):
        assert set(found["paired"][name]) == D - {"success_at_best_temperature"}
    assert set(found["best_of_n"]) == {"sft", "grpo"}
    assert set(found["best_of_n"]["sft"]) == set(found["best_of_n_oracle"]["grpo"]) == {"1", "2", "4", "8"}
    assert {"reward_before", "reward_after", "kl", "judge_idm_before", "judge_idm_after"} <= set(found["grpo"])
    assert found["grpo"]["sampler_trainer_gap"] < 1e-4
    assert set(found["idm"]["prefers_true_over"]) >= {"random_action", "counterfactual_action", "copy", "swapped"}
    data = {
        "labelled",
        "unlabelled_pairs",
        "pairs_with_one_action",
        "label_accuracy",
        "selected",
        "grpo_prompts",
        "test",
    }
    assert data <= set(found["data"])
    assert found["seconds"]["total"] >= sum(v for k, v in found["seconds"].items() if k != "total") - 1


def test_every_stage_is_a_run_that_opens(demo: Path) -> None:
    for name in ("sft", "bootstrapped", "grpo", "best_of_n_training"):
        assert load_fdm(demo / name).adapter is not None
        if name != "best_of_n_training":  # which may find no candidate that leads
            assert (demo / name / "metrics.jsonl").is_file()
            assert list((demo / name / "tensorboard").rglob("events*"))
    triplets = read_triplets(demo / "test" / "triplets.json")
    assert len(triplets) == 6
    for name in ("idm", "judge_idm"):
        idm = load_idm(demo / name)
        assert idm.score(triplets[0].source, [triplets[0].target], triplets[0].action)[0] < 0  # type: ignore[list-item]


def test_the_report_stands_alone(demo: Path) -> None:
    html = re.sub(r"base64,[A-Za-z0-9+/=]+", "", (demo / "report.html").read_text())
    assert html.count("<img") >= 7
    assert "http" not in html
    assert "<script" not in html


def test_an_interrupted_demo_goes_on_and_ends_alike(demo: Path) -> None:
    before = results_of(demo)
    (demo / "results.json").unlink()
    progress = json.loads((demo / "progress.json").read_text())
    for stage in list(progress["seconds"])[list(progress["seconds"]).index("bootstrapped") :]:
        del progress["seconds"][stage]  # as if it had been stopped in the middle
    (demo / "progress.json").write_text(json.dumps(progress))
    again = start("scripts/demo.py", *TINY, "--output", demo)
    assert again.returncode == 2
    assert "exists: use --resume" in again.stderr
    other = start("scripts/demo.py", *TINY, "--seed", 1, "--resume", "--output", demo)
    assert "begun with other values of seed" in other.stderr
    done = start("scripts/demo.py", *TINY, "--resume", "--output", demo)
    assert done.returncode == 0, done.stderr
    assert "sft: done by an earlier run" in done.stderr
    after = results_of(demo)
    assert {k: v for k, v in after.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}


def test_what_a_task_usually_changes_is_free(demo: Path) -> None:
    story = start_of(demo, 2)
    margin, keep = rewards_of(story)
    assert (margin.weight, keep.weight) == (1.0, 1.0)
    changed: dict[str, list[int]] = {}
    for triplet in story.labelled:
        before, after = story.vlm.encode([triplet.source, triplet.target]).cpu().numpy()
        changed.setdefault(triplet.task or "", []).append(int((before != after).sum()))
    assert keep.function.free == {task: median(counts) for task, counts in changed.items()}  # type: ignore[attr-defined]


def test_grpo_is_rewarded_by_the_weights_of_the_budget(demo: Path) -> None:
    story = start_of(demo, 2)
    story.vlm.attach_adapter(demo / "bootstrapped" / "adapter", "bootstrapped")
    likelihood, keep, confidence = grpo_rewards(story, "bootstrapped")
    assert (likelihood.name, keep.name, confidence.name) == ("idm_likelihood", "keep_unchanged", "fdm_confidence")
    assert (likelihood.weight, keep.weight, confidence.weight) == (1.0, 0.2, 1.0)
    assert confidence.function.fdm.adapter == "bootstrapped"  # type: ignore[attr-defined]
    assert keep.function.free  # type: ignore[attr-defined]
    story.budget = replace(story.budget, grpo_keep=0.0, grpo_confidence=2.0)
    assert [(one.name, one.weight) for one in grpo_rewards(story, "bootstrapped")] == [
        ("idm_likelihood", 1.0),
        ("fdm_confidence", 2.0),
    ]
    assert not list((demo / "grpo").glob("checkpoint-*"))  # the last step is what counts


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
    names = [f"{name} {n}" for name in ("idm_likelihood", "idm_margin", "ensemble", "oracle") for n in (1, 2)]
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
    short = ["--methods", "best_of_n", "dpo", "grpo", "--candidates", 512, "--cases", 3, "--validation", 2]
    call = ["scripts/study_methods.py", "--runs", demo, *short, "--output", tmp_path / "study"]
    shown = succeed(*call)
    assert json.loads((tmp_path / "study" / "results.json").read_text())["amounts"]["validation"] == 2
    made = tmp_path / "study" / demo.name
    assert [row.split("`")[1] for row in shown.splitlines() if row.startswith("| ") and "`" in row] == [
        *("bootstrapped", "best_of_n", "dpo", "grpo"),
    ]
    starts = load_file(demo / "bootstrapped" / "adapter" / "adapter_model.safetensors")
    for name in ("best_of_n", "dpo", "grpo"):
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


BARE_WORLD = '''
import numpy as np
from rl.world import Judgement

class Lamp:
    """A lamp in a room of some shade that is on or off: the least that a world can have."""
    name, image_size = "lamp", 32

    def sample_scene(self, rng):
        return int(rng.integers(40)), bool(rng.integers(2))

    def sample_action(self, scene, rng):
        return "switch the lamp off" if scene[1] else "switch the lamp on"

    def outcomes(self, scene, action):
        return [(scene[0], not scene[1])] if action == self.sample_action(scene, None) else []

    def render(self, scene, rng):
        return np.full((32, 32, 3), (200 if scene[1] else 20) + scene[0], np.uint8)

    def judge(self, scene, action, image):
        right = (image.mean() > 128) != scene[1]
        return Judgement(10.0 * right, 10.0, bool(right))
'''


def test_a_world_of_ones_own(tmp_path: Path) -> None:
    """Without a shipped base, captions, videos or splits; one action a scene, so that one kind of probe is absent."""
    (tmp_path / "lamp.py").write_text(BARE_WORLD)
    world = ["--world", f"{tmp_path / 'lamp.py'}:Lamp", "--base_steps", 2]
    done = start("scripts/demo.py", *world, *TINY, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "has no shipped base" in done.stderr
    assert "has no splits: its cases (scene and action) are divided" in done.stderr
    found = results_of(tmp_path / "run")
    assert found["world"] == "lamp"
    assert "counterfactual_action" not in found["idm"]["prefers_true_over"]
    assert found["data"]["judge_labelled"] == 40
    assert (tmp_path / "run" / "base" / "rewind.json").is_file()
    (tmp_path / "run").rename(tmp_path / "moved")  # the runs in it name their base from where they are
    assert load_fdm(tmp_path / "moved" / "sft").backbone.image_size == 32


def test_differences_in_words() -> None:
    assert how_sure([0.05, 0.01, 0.09]).startswith("better: +5.0 points")
    assert how_sure([-0.05, -0.09, -0.01]).startswith("worse: -5.0")
    assert how_sure([0.05, -0.01, 0.11]).startswith("no difference shown")
    assert how_sure([-0.05, -0.09, -0.01], less_is_better=True).startswith("better: -5.0")


def test_area_under_the_curve_by_hand() -> None:
    assert auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False])) == 1.0
    assert auc(np.array([1.0, 1.0, 2.0]), np.array([True, False, False])) == 0.25
    assert np.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))


@pytest.mark.slow
def test_rewards_and_success_rise_as_committed(tmp_path: Path) -> None:
    """The demo's own amounts and seed: about ten minutes."""
    done = start("scripts/demo.py", "--output", tmp_path / "run", timeout=3600)
    assert done.returncode == 0, done.stderr
    found = results_of(tmp_path / "run")
    grpo, paired = found["grpo"], found["paired"]
    assert grpo["reward_after"] > grpo["reward_before"]
    assert grpo["judge_idm_after"] > grpo["judge_idm_before"]
    assert grpo["sampler_trainer_gap"] < 1e-4
    for name in ("idm-sft", "best_of_8_mix-best_of_1", "trained_and_reranked-sft"):
        assert paired[name]["success"][1] > 0, name  # the lower end of the interval
    assert paired["bootstrapped-sft"]["judge"][1] > 0
    assert paired["bootstrapped-sft"]["copy_rate"][0] < 0


def test_imitation_against_reward_on_the_same_labels(demo: Path, tmp_path: Path) -> None:
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
