"""Monitors: what they measure, by hand where it can be, and a run that they stop."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_grpo import low_tokens, trainer

from rewards import Reward
from rl.errors import RewindError
from rl.evaluation.rollout_measures import measure
from rl.models.families.chameleon import ChameleonVLM
from rl.triplets import Candidate, Scored, Triplet
from trainers.common.checkpoints import fit
from trainers.grpo.monitors import ENOUGH, RULES, Monitors, Rule, rules_of
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.waiting import read_waiting, write_waiting


def test_rules_in_words() -> None:
    assert rules_of(["copy_rate"]) == {"copy_rate": RULES["copy_rate"]}
    found = rules_of(["all", "copy_rate=0.2", "brightness=:0.4", "entropy=0.1:0.3"])
    assert set(found) == set(RULES) - {"judge_idm"}
    assert found["copy_rate"] == Rule(0.2, None, +1)
    assert found["brightness"] == Rule(None, 0.4)
    assert found["entropy"] == Rule(0.1, 0.3)
    assert rules_of(["none"]) == {}
    assert set(rules_of(["all"], with_judge=True)) == set(RULES)
    for wrong in ("sharp", "copy_rate=x", "copy_rate=-1", "copy_rate=1:2:3", "none=1", "judge_idm"):
        with pytest.raises(RewindError, match="monitor"):
            rules_of([wrong])


def scored(vlm: ChameleonVLM, ids_BK: np.ndarray, logprob: float = -0.5) -> list[Scored]:
    return [Scored(Candidate(ids, np.full(4, logprob, np.float32), vlm), {}, 0.0) for ids in ids_BK]


def test_measures_by_hand(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    source = tiny.encode([picture]).numpy()[0]
    other = np.array([int(tiny.layout.image_ids_V[n]) for n in (0, 1, 2, 3)])
    rows = [Triplet(picture, "remove all rings")] * 4
    found = measure(rows, scored(tiny, np.stack([source, source, source, other])), group=4)
    assert found["copy_rate"] == 0.75
    assert found["duplicates"] == 0.5  # two distinct pictures of four
    assert found["entropy"] == pytest.approx(0.5)
    images = tiny.decode(np.stack([source, source, source, other])).astype(float)
    assert found["brightness"] == pytest.approx((images.mean() - picture.mean()) / 255, abs=1e-5)
    spread = (images.max(-1) - images.min(-1)).mean() - (picture.max(-1).astype(float) - picture.min(-1)).mean()
    assert found["colour"] == pytest.approx(spread / 255, abs=1e-5)
    again = tiny.encode(list(images.astype(np.uint8))).numpy()
    assert found["survival"] == pytest.approx((again == np.stack([source, source, source, other])).mean())
    assert measure(rows, scored(tiny, np.stack([source] * 4)), 2)["code_usage"] == pytest.approx(1.0)
    assert 0 < found["sharpness"] < 1  # the source is noise, which no decoder of random weights draws


def test_a_judge_reads_the_decoded_picture(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    class Judge:
        def score(self, sources: list[Any], targets: list[Any], actions: list[str]) -> list[float]:
            assert all(isinstance(target, np.ndarray) and target.dtype == np.uint8 for target in targets)
            return [-2.0] * len(targets)

    ids = tiny.encode([picture]).numpy()
    assert measure([Triplet(picture, "wait")], scored(tiny, ids), 1, Judge())["judge_idm"] == -2.0


def watch(monitors: Monitors, values: list[float], monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What `stopped` says after each rollout of a copy rate."""
    import trainers.grpo.monitors as module

    told = []
    monkeypatch.setattr(module, "ENOUGH", 0)
    for step, value in enumerate(values):
        monkeypatch.setattr(module, "measure", lambda *_: {"copy_rate": value, "survival": 1 - value})  # noqa: B023
        monitors.observe([], [], 1, lambda name, value: None, step)
        told.append(monitors.stopped)
    return told


def test_it_warns_once_and_stops_both_after_two_in_a_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rules = {"copy_rate": Rule(0.1, 0.3, +1)}
    with caplog.at_level(logging.WARNING, logger="rl"):
        told = watch(Monitors(rules), [0.1, 0.25, 0.45, 0.3, 0.45, 0.5], monkeypatch)
    assert told[:5] == [None] * 5  # one beyond, then back, then one beyond
    assert told[5] == (
        "'copy_rate' went from 0.1 at the start to 0.5 at step 5, a change of more than 0.3 twice in a row"
    )
    assert [r.getMessage() for r in caplog.records] == [
        "monitor: 'copy_rate' went from 0.1 at the start to 0.45 at step 2 (warns beyond a change of 0.1)"
    ]
    assert watch(Monitors(rules), [0.9, 0.0, 0.0], monkeypatch)[-1] is None  # a fall of the copy rate is welcome
    assert watch(Monitors({"survival": Rule(None, 0.3, -1)}), [0.0, 0.5, 0.5], monkeypatch)[-1] is not None
    assert watch(Monitors({"survival": Rule(0.1, None)}), [0.0, 0.5, 0.5], monkeypatch)[-1] is None


def test_a_resumed_run_is_compared_with_its_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"copy_rate": Rule(None, 0.3, +1)}
    assert watch(Monitors(rules, tmp_path / "m.json"), [0.1], monkeypatch) == [None]
    assert watch(Monitors(rules, tmp_path / "m.json"), [0.5, 0.5], monkeypatch)[-1] is not None


def test_a_resumed_run_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third rollout is beyond a limit and the fourth too: they are twice in a row also if a kill lies between."""
    import trainers.grpo.monitors as module

    monkeypatch.setattr(module, "ENOUGH", 0)

    def run(name: str) -> WorldModelGRPOTrainer:
        monitors = Monitors({"copy_rate": Rule(0.1, 0.3, +1)}, tmp_path / f"{name}.json")
        settings = {"max_steps": 9, "save_strategy": "steps", "save_steps": 1}
        made = trainer(tmp_path / name, [Reward.of(low_tokens)], extra={"monitors": monitors}, **settings)
        values = {"copy_rate": [0.1, 0.1, 0.5, 0.5, 0.5, 0.5]}
        monkeypatch.setattr(
            module, "measure", lambda *_: {key: said[made.state.global_step] for key, said in values.items()}
        )
        return made

    whole = run("run")
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4", ignore_errors=True)
    (tmp_path / "run.json").unlink()  # the checkpoint knows the start too
    again = run("run")
    fit(again, tmp_path / "run", resume=True)
    assert (whole.state.global_step, again.state.global_step) == (4, 4)
    assert whole.monitors is not None
    assert again.monitors is not None
    assert again.monitors.stopped == whole.monitors.stopped
    assert again.monitors.stopped is not None
    assert not (tmp_path / "run.json").exists()


def test_what_waits_to_be_measured_is_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rollouts of 8 are measured together, and a kill lies between the first and the second of them."""
    import trainers.grpo.monitors as module

    monkeypatch.setattr(module, "ENOUGH", 24)

    def run() -> WorldModelGRPOTrainer:
        monitors = Monitors(rules_of(["all"]), tmp_path / "monitors.json")
        settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01}
        return trainer(tmp_path / "run", [Reward.of(low_tokens)], extra={"monitors": monitors}, **settings)

    whole, again = run(), run()
    whole.train()
    for step in (6, 5):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    fit(again, tmp_path / "run", resume=True)  # from the fourth step: its rollout waits
    measured = [
        [(row["step"], row["monitors/entropy"], row["monitors/survival"]) for row in logs if "monitors/entropy" in row]
        for logs in (whole.state.log_history, again.state.log_history)
    ]
    assert [step for step, *_ in measured[0]] == [3, 6]
    assert measured[0] == measured[1]


def test_what_waits_measures_as_before(tiny: ChameleonVLM, picture: np.ndarray, tmp_path: Path) -> None:
    ids = tiny.encode([picture, picture[::-1].copy()]).numpy()
    first, second = scored(tiny, ids)
    rows = [Triplet(Image.fromarray(picture), "remove all rings"), Triplet(first.candidate, "wait")]
    write_waiting(tmp_path / "it.safetensors", rows, [first, second])
    found = read_waiting(tmp_path / "it.safetensors", tiny)
    assert [row.action for row in found[0]] == ["remove all rings", "wait"]
    assert isinstance(found[0][1].source, Candidate)
    assert measure(*found, group=1) == measure(rows, [first, second], group=1)


def test_a_monitor_stops_a_run_and_leaves_its_checkpoints(tmp_path: Path) -> None:
    """A reward that pays for few codes, at a rate that collapses the policy."""
    monitors = Monitors(rules_of(["all", "code_usage=0.05:0.15"]), tmp_path / "monitors.json")
    settings = {"max_steps": 40, "learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1}
    settings |= {"per_device_train_batch_size": ENOUGH, "num_generations": 8}
    run = trainer(tmp_path, [Reward.of(low_tokens)], extra={"monitors": monitors}, **settings)
    run.train()
    assert monitors.stopped is not None
    last = run.state.global_step
    assert 2 <= last < 40
    assert (tmp_path / f"checkpoint-{last - 1}").is_dir()
    assert not (tmp_path / f"checkpoint-{last}").exists()
    with pytest.raises(RewindError, match=rf"a monitor stopped the run in .* checkpoint-{last - 1}$"):
        monitors.check(tmp_path)
    logs = [row for row in run.state.log_history if "monitors/copy_rate" in row]
    assert len(logs) == last
    assert logs[0]["monitors/code_usage"] == pytest.approx((monitors.start or {})["code_usage"])
