"""Settings that both stages of pretraining share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from rl.errors import RewindError


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
