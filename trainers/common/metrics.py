"""What training shows while it runs: `metrics.jsonl`, a progress bar, grids of pictures in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from rl.running.files import json_lines, write_whole


class MetricsFile(TrainerCallback):
    """Appends every log entry to `metrics.jsonl`; on resumption it drops the steps that will be run again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.path.exists() and state.is_world_process_zero:
            kept = [row for row in json_lines(self.path) if row["step"] <= state.global_step]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


class QuietProgress(ProgressCallback):
    """The progress bar with time left, and beside it the loss or the reward instead of a line for every log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        shown = {key: f"{logs[key]:.3g}" for key in ("loss", "reward", "eval_reward") if logs and key in logs}
        if state.is_world_process_zero and self.training_bar is not None and shown:
            self.training_bar.set_postfix({k: v for k, v in shown.items() if k != "loss" or len(shown) == 1})


class ImageGrid(TrainerCallback):
    """Writes a picture of `draw(model)` (uint8 RGB [H, W, 3]) to TensorBoard every `every` steps."""

    def __init__(self, tag: str, draw: Callable[[nn.Module], np.ndarray], every: int, log_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.tag, self.draw, self.every = tag, draw, every
        self.writer = SummaryWriter(str(log_dir))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.writer.add_image(self.tag, self.draw(model), state.global_step, dataformats="HWC")
            self.writer.flush()


def show_quietly(trainer: Trainer) -> None:
    """Put `QuietProgress` in the place of the bar that prints every log."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietProgress)
