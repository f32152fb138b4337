"""`train_grpo.py --profile true`: the parts of a step, exactly, under a clock that tells how often it was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_grpo import trainer
from transformers import TrainerCallback

from rewards import Reward
from trainers.grpo.profile import Parts, Profile


class Ticks:
    """A second passes whenever it is read."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1
        return self.time


def bright(completions: list[Any], **_: Any) -> list[float]:
    return [float(np.asarray(picture).mean()) for picture in completions]


def test_what_runs_inside_another_part_counts_once() -> None:
    time = [0.0]
    parts = Parts(lambda: time[0])

    def passes(seconds: float) -> None:
        time[0] += seconds

    passes(1)
    with parts.part("draw"):
        passes(2)
        with parts.part("decode"):
            passes(4)
        passes(8)
    with parts.part("evaluation", closed=True), parts.part("draw"):
        passes(16)
    passes(32)
    assert parts.take() == {"other": 33, "draw": 10, "decode": 4, "evaluation": 16}
    assert parts.take() == {"other": 0, "draw": 0, "decode": 0, "evaluation": 0}


def test_parts_sum_up_to_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every second from one step's end to the next's is in one part, which is logged, and printed at the end."""
    clock = Ticks()
    profile = Profile(clock)
    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(clock.time)

    run = trainer(
        tmp_path,
        profile.timed([Reward.of(bright)]),
        extra={"callbacks": [profile, Ends()]},
        max_steps=3,
        beta=0.1,
    )
    profile.trainer = run
    run.train()
    logs = [row for row in run.state.log_history if "reward" in row]
    for row, before, after in zip(logs[1:], ends, ends[1:], strict=False):
        logged = {name.removeprefix("profile/"): value for name, value in row.items() if name.startswith("profile/")}
        assert sum(logged.values()) == after - before
        working = {"encode", "draw", "decode", "reward/bright", "log_probs", "backward", "optimizer", "logging"}
        assert {name for name, value in logged.items() if value > 0} == working | {"other"}
        assert logged["log_probs"] == 2  # policy and reference
    printed = capsys.readouterr().out
    assert "where a step's time goes, mean of 2:" in printed
    assert "reward/bright" in printed
    for owner, name in ((run, "log"), (run.vlm, "decode"), (run.accelerator, "backward")):
        assert name not in vars(owner)  # as it was before
