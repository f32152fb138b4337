"""What a training run is refused for before its folder is claimed: whatever would fail, or be ignored, later on.

Seams of transformers 5.23 that it touches: `Trainer.get_optimizer_cls_and_kwargs`, which the trainer asks for its
optimizer, and `get_reporting_integration_callbacks`, whose callbacks say when their tracker is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from rl.errors import RewindError
from trainers.common.refusals import Options, refuse_ignored

MOST_SEED = 2**32 - 1
"""numpy takes no larger one."""


def check_training(config: TrainingArguments, options: Options, arguments: Any = None) -> None:
    """Check a training config by itself, before anything is opened, drawn or claimed.

    Args:
        config: one of our configs.
        options: which of its options are honoured (`trainers.common.refusals`).
        arguments: the script's own arguments, of which `limit` and `temperature` are looked at where they are.

    Raises:
        RewindError: in a sentence, what cannot be used and what to do.
    """
    refuse_ignored(config, options)
    _check_numbers(config, arguments)
    _check_hardware(config)
    _check_trackers(config.report_to)
    _tried("--optim", config.optim, lambda: _optimizer(config))
    _tried("--lr_scheduler_type", config.lr_scheduler_type, lambda: _scheduler(config))
    _tried("--dataloader_num_workers", config.dataloader_num_workers, lambda: _loader(config))


def check_validation(config: TrainingArguments, files: Sequence[str], metrics: Sequence[str] = ()) -> None:
    """Check that there is something to evaluate on if and only if it is asked for.

    Args:
        config: one of our configs.
        files: of `--validation`.
        metrics: names that `--metric_for_best_model` may have, without `eval_`, `*` for any text; any if empty.

    Raises:
        RewindError: one without the other, or a metric that no evaluation gives.
    """
    asked = config.eval_strategy != "no" or config.eval_on_start or config.do_eval
    if asked and not files:
        raise RewindError(
            "there is nothing to evaluate on: give --validation held-out.json, or leave out --eval_strategy, "
            "--eval_on_start and --do_eval"
        )
    if files and config.eval_strategy == "no":
        raise RewindError(
            "--validation is never looked at without --eval_strategy: add --eval_strategy epoch, or --eval_strategy "
            "steps --eval_steps 100"
        )
    name = config.metric_for_best_model
    measured = name is None or any(fnmatchcase(name.removeprefix("eval_"), metric) for metric in metrics or "*")
    if asked and not measured:
        known = ", ".join(f"eval_{metric}" for metric in metrics)
        raise RewindError(f"--metric_for_best_model {name} is not measured here: use one of {known}")


def check_no_validation(config: TrainingArguments, script: str) -> None:
    """Raise a `RewindError` if a script without evaluation is asked for one."""
    if config.eval_strategy != "no" or config.eval_on_start or config.do_eval:
        raise RewindError(
            f"{script} does not evaluate while it trains: leave out --eval_strategy, --eval_on_start and --do_eval, "
            "and measure its run with evaluate.py"
        )


def at_least(least: float, **values: float | None) -> None:
    """Raise a `RewindError` for a flag below what it may be, or that is no finite number; None is not looked at."""
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise RewindError(f"--{name} must be {least:g} or more, not {value:g}")


def above_zero(**values: float | None) -> None:
    """Raise a `RewindError` for a flag that is not a finite number above 0; None is not looked at."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise RewindError(f"--{name} must be above 0, not {value:g}")


def _check_numbers(config: TrainingArguments, arguments: Any) -> None:
    at_least(
        1,
        limit=getattr(arguments, "limit", None),
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        save_total_limit=config.save_total_limit,
    )
    at_least(
        0,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        dataloader_num_workers=config.dataloader_num_workers,
        eval_delay=config.eval_delay,
        neftune_noise_alpha=config.neftune_noise_alpha,
    )
    above_zero(
        logging_steps=config.logging_steps if config.logging_strategy == "steps" else None,
        save_steps=config.save_steps if config.save_strategy == "steps" else None,
        eval_steps=config.eval_steps if config.eval_strategy == "steps" else None,
        temperature=getattr(arguments, "temperature", None),
    )
    if config.max_steps != -1:
        if config.max_steps < 1:
            raise RewindError(
                f"--max_steps must be 1 or more, not {config.max_steps}: leave it out to train for --num_train_epochs"
            )
    else:
        above_zero(num_train_epochs=config.num_train_epochs)
    for name, seed in (("seed", config.seed), ("data_seed", config.data_seed)):
        if seed is not None and not 0 <= seed <= MOST_SEED:
            raise RewindError(f"--{name} must be a whole number from 0 to {MOST_SEED}, not {seed}")


def _check_hardware(config: TrainingArguments) -> None:
    """What only a GPU has, asked for where training runs on the CPU."""
    if config.device.type != "cpu":
        return
    if config.fp16:
        raise RewindError("--fp16 needs a GPU: use --bf16 true, or leave both out for float32")
    if getattr(config, "activation_offloading", False):
        raise RewindError("--activation_offloading moves activations off a GPU, and there is none: leave it out")


def _check_trackers(report_to: Any) -> None:
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        try:
            for callback in get_reporting_integration_callbacks(name):
                callback()
        except (RuntimeError, ImportError, ValueError) as error:
            raise RewindError(
                f"--report_to {name} cannot be used ({_short(error)}): install it, or use --report_to tensorboard"
            ) from error


def _tried(flag: str, value: Any, make: Any) -> None:
    """Make something as a trainer will, and say in a sentence why it cannot be made."""
    try:
        make()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, AssertionError) as error:
        shown = getattr(value, "value", value)
        raise RewindError(f"{flag} {shown} cannot be used as it is configured: {_short(error)}") from error


def _optimizer(config: TrainingArguments) -> torch.optim.Optimizer:
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(config)
    if config.optim_args:
        without = copy(config)
        without.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(without) == (kind, settings):
            raise ValueError(f"it has no use for --optim_args {config.optim_args}")
    made: torch.optim.Optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **settings)
    return made


def _scheduler(config: TrainingArguments) -> None:
    steps = config.max_steps if config.max_steps > 0 else 1000
    get_scheduler(
        config.lr_scheduler_type,
        optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1),
        num_warmup_steps=config.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs,
    )


def _loader(config: TrainingArguments) -> None:
    """As a trainer's; no worker starts before it is read."""
    DataLoader(
        [0],  # type: ignore[arg-type]
        num_workers=config.dataloader_num_workers,
        persistent_workers=config.dataloader_persistent_workers,
        prefetch_factor=config.dataloader_prefetch_factor,
        multiprocessing_context=config.dataloader_multiprocessing_context,
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
