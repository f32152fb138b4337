"""The two stages that make a base from scratch: the VQ tokenizer, then the language model over text and image tokens.

Both run on transformers' `Trainer`, which brings the progress bar with time left, TensorBoard, checkpoints and exact
resumption; each stage finishes in one safetensors file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from rl.errors import RewindError
from rl.files import json_lines, write_whole
from trainers.checkpoints import WholeCheckpoints, fit


class Images(Dataset):  # type: ignore[type-arg]
    """uint8 pictures [N, H, W, 3] as items for `Trainer`."""

    def __init__(self, images_NHWC: np.ndarray) -> None:
        self.images = torch.from_numpy(images_NHWC)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images_BHWC": self.images[index]}


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


def training_arguments(
    output: Path, *, steps: int, batch_size: int, learning_rate: float, warmup: int, seed: int, **more: Any
) -> TrainingArguments:
    """The settings that both stages share: cosine schedule, a log line every 50 steps, two checkpoints kept."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup,
        "logging_steps": min(50, max(1, steps // 10)),
        "save_steps": max(1, min(500, steps // 4)),
        "save_total_limit": 2,
        "report_to": ["tensorboard"],
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "max_grad_norm": 1.0,
        "logging_nan_inf_filter": False,  # a loss that is not a number is shown as it is
        "adam_beta2": 0.99,
        "weight_decay": 0.01,
        "seed": seed,
        "data_seed": seed,
    }
    return TrainingArguments(**{**settings, **more})


def require_one_process(script: str) -> None:
    """Refuse to start on several processes what is not yet right there.

    Raises:
        RewindError: a launcher started more than one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RewindError(f"{script} runs in one process so far: start it with python, or accelerate --num_processes 1")


def show_quietly(trainer: Trainer) -> None:
    """Put `QuietProgress` in the place of the bar that prints every log."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietProgress)


class TokenizerTrainer(WholeCheckpoints, Trainer):
    """transformers' `Trainer` with checkpoints that are whole or not there."""


def train_tokenizer(
    model: nn.Module,
    images_NHWC: np.ndarray,
    output: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    resume: bool,
) -> None:
    """Train a `VQTrainingModel` on pictures; the model is changed in place, checkpoints and logs go to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    arguments = training_arguments(
        output, steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=100, seed=seed, weight_decay=0.0
    )
    shown = torch.from_numpy(images_NHWC[:: max(1, len(images_NHWC) // 8)][:8])

    @torch.no_grad()
    def draw(module: nn.Module) -> np.ndarray:
        module.eval()
        decoded = module.reconstruct(shown.to(next(module.parameters()).device)).cpu()  # type: ignore[operator]
        module.train()
        return torch.cat([torch.cat(list(shown), 1), torch.cat(list(decoded), 1)]).numpy()

    callbacks = [
        MetricsFile(output / "metrics.jsonl"),
        ImageGrid("reconstruction", draw, max(1, steps // 10), output / "tensorboard"),
    ]
    trainer = TokenizerTrainer(model=model, args=arguments, train_dataset=Images(images_NHWC), callbacks=callbacks)
    fit(trainer, output, resume)
