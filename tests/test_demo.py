"""The main job at a tiny budget: what it writes, that an interrupted run ends alike, a world of one's own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from script_runs import start

from rl import load_fdm, load_idm
from rl.data.triplet_files import read_triplets
from rl.evaluation.ranking import auc
from trainers.studies.demo.mixes import grpo_rewards
from trainers.studies.demo.report import how_sure
from trainers.studies.grpo_settings import rewards_of, start_of

M = {"success", "editing", "minimality", "judge", "copy_rate", "n", "ci95"}
M |= {"best_temperature", "success_at_best_temperature"}
D = {"success", "judge", "copy_rate", "minimality", "success_at_best_temperature"}


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
    begun = "sft" if "bootstrapped" in found["data"].get("held_back", {}) else "bootstrapped"  # the premise may say no
    systems += [f"{begun}_and_reranked", "trained_and_reranked"]
    assert list(found["fdm"]) == systems
    assert all(set(m) == M for m in found["fdm"].values())
    assert {"success", "editing", "minimality", "judge", "n", "ci95"} <= set(found["ceiling"]["tokenizer"])
    compared = ("bootstrapped-sft", f"grpo-{begun}", f"best_of_n_training-{begun}", "trained_and_reranked-sft")
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
    found = results_of(demo)["data"]["premise"]
    assert {"video", "rl", "verdicts", "min_score", "idm", "fdm", "reward", "labels", "verifying"} == set(found)
    assert "surest part of labels" in html
    for truth, said, _ in found["idm"]["confused"]:
        assert f"<td>{truth}</td>" in html
        assert said in html


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


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ("test=7", "test is in --budget and a flag of its own: give it once"),
        ("tests=7", "--budget tests=7: the amounts are labelled, "),
        ("sentences=two", "'two' is no number of its kind"),
    ],
)
def test_amounts_that_are_refused(budget: str, sentence: str, tmp_path: Path) -> None:
    done = start("scripts/demo.py", "--test", 6, "--budget", budget, "--output", tmp_path / "run")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / "run").exists()


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
