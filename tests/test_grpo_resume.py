"""GRPO runs that were cut off and go on: the same bytes, the same end, the same order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from test_grpo import low_tokens, trainer, triplets
from transformers import EarlyStoppingCallback, TrainerCallback

from rewards import Reward
from rl.errors import RewindError
from trainers.common.checkpoints import WholeCheckpoints, fit
from trainers.grpo.trainer import WorldModelGRPOTrainer


def test_checkpoints_stand_where_a_rollout_has_been_used_up(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "num_iterations": 2, "save_steps": 3}
    with pytest.raises(RewindError, match="make --save_steps a multiple of 2, not 3"):
        trainer(tmp_path, [Reward.of(low_tokens)], **settings)
    uneven = {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    with pytest.raises(RewindError, match="make --save_steps a multiple of 3, not 2"):  # 3 passes, 2 a step
        trainer(tmp_path, [Reward.of(low_tokens)], save_strategy="steps", save_steps=2, **uneven)
    with pytest.raises(RewindError, match="use --save_strategy steps with a multiple of 2, not 'epoch'"):
        trainer(tmp_path, [Reward.of(low_tokens)], save_strategy="epoch", num_iterations=2)


RESUMED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "beta": 0.1, "learning_rate": 0.01}


def whole_and_cut(make: Callable[..., WorldModelGRPOTrainer], folder: Path) -> WorldModelGRPOTrainer:
    """A run of four steps; in `folder / "cut"` the same one, ended after its third."""
    whole = make(folder / "whole", [Reward.of(low_tokens)], **RESUMED)
    whole.train()
    cut = make(folder / "cut", [Reward.of(low_tokens)], **RESUMED)
    cut.add_callback(StopAfter(3))
    cut.train()
    return whole


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    settings, whole = RESUMED, whole_and_cut(trainer, tmp_path)
    (tmp_path / "cut" / "checkpoint-4").mkdir()  # what a kill in the middle of saving leaves
    again = trainer(tmp_path / "cut", [Reward.of(low_tokens)], **settings)
    fit(again, tmp_path / "cut", resume=True)
    late = trainer(tmp_path / "cut", [Reward.of(low_tokens)], **settings)
    fit(late, tmp_path / "cut", resume=True)  # a run that was killed after its last step is not trained further
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, again.model.get_parameter(name)), name
        assert ".ref." in name or torch.equal(weight, late.model.get_parameter(name)), name
    rewards = [[row["reward"] for row in run.state.log_history if "reward" in row] for run in (whole, again, late)]
    assert rewards[0] == rewards[1] == rewards[2]


def test_a_resumed_run_stops_as_early(tmp_path: Path) -> None:
    """The same validation reward every time: patience 3 is lost at the fourth evaluation, resumed in between or not."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 9}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "eval_on_start": True}
    constant = Reward.of(lambda prompts: [0.5] * len(prompts), "constant")

    def run(name: str) -> WorldModelGRPOTrainer:
        extra = {"validation": triplets(10)[8:], "callbacks": [EarlyStoppingCallback(3)]}
        return trainer(tmp_path / name, [constant], extra=extra, **settings)

    whole, cut, again, late = run("whole"), run("cut"), run("cut"), run("cut")
    whole.train()
    cut.add_callback(StopAfter(4))  # leaves a checkpoint of step 3, and two evaluations that counted
    cut.train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4", ignore_errors=True)
    fit(again, tmp_path / "cut", resume=True)
    assert (whole.state.global_step, again.state.global_step) == (4, 4)
    evaluated = [[row["step"] for row in one.state.log_history if "eval_reward" in row] for one in (whole, again)]
    assert evaluated == [[0, 1, 2, 3, 4]] * 2
    fit(late, tmp_path / "cut", resume=True)  # its last checkpoint says that it had ended
    assert late.state.global_step == 4
    assert not (tmp_path / "cut" / "checkpoint-5").exists()
    assert late.state.best_model_checkpoint == str(tmp_path / "cut" / "checkpoint-1")
    best = load_file(tmp_path / "cut" / "checkpoint-1" / "adapter_model.safetensors")
    found = get_peft_model_state_dict(late.model)
    assert all(torch.equal(found[name], weight) for name, weight in best.items())


def test_a_resumed_run_goes_on_in_the_order_of_its_epoch(tmp_path: Path) -> None:
    """An epoch has 4 steps. TRL 1.16's sampler alone would begin the second one again in the order of the first."""
    settings = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}
    whole = trainer(tmp_path / "run", [Reward.of(low_tokens)], **settings)
    orders = list(whole._get_train_sampler())
    plain = super(WholeCheckpoints, whole)._get_train_sampler()
    assert orders == list(plain)  # nothing changes for a run that nobody interrupts
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    again = trainer(tmp_path / "run", [Reward.of(low_tokens)], **settings)
    fit(again, tmp_path / "run", resume=True)
    rewards = [[row["reward"] for row in run.state.log_history if "reward" in row] for run in (whole, again)]
    assert rewards[0] == rewards[1]
    sampler = again._get_train_sampler()
    second, third = [list(plain) for _ in range(2)]
    sampler.set_epoch(2)
    assert list(sampler) == third != second


class StopAfter(TrainerCallback):
    """Ends a run early, between two checkpoints."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step
        control.should_save = control.should_save and state.global_step < self.step
