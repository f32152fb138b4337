"""What makes a plan fit that is over a GPU's memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainers.plan.arithmetic import PHASES, Job, memory
from trainers.plan.shapes import Shape


def what_fits(shape: Shape, job: Job, found: dict[str, Any], gpu_bytes: float, pairs: bool = False) -> list[str]:
    """A sentence for each number of GPUs at which a way of sharing is over memory; none where all fit.

    Args:
        shape, job: what was planned.
        found: the plan (`plan`).
        gpu_bytes: memory of a GPU, of which nine tenths are counted on.
        pairs: a batch counts pairs of sequences (DPO).
    """
    each = 2 if pairs else 1
    lines: list[str] = []
    for gpus, by_strategy in found["gpus"].items():
        fits: list[str] = []
        never: list[str] = []
        for strategy, figures in by_strategy.items():
            if figures["peak"] <= 0.9 * gpu_bytes:
                continue
            name = "single" if (strategy, gpus) == ("ddp", 1) else strategy
            batch = _largest(shape, job, (strategy, gpus), gpu_bytes, each)
            phase = max(PHASES, key=lambda phase: float(figures[phase]))
            (fits if batch else never).append(f"{name} {batch}" if batch else f"{name} ({phase})")
        many = f"{gpus} GPU{'s' if gpus > 1 else ''}"
        if fits:
            lines.append(f"{many}: a --per_device_train_batch_size that fits: {', '.join(fits)}")
        if never:
            lines.append(f"{many}: no batch fits: {', '.join(never)}")
    if lines and not job.checkpointing:
        lines.append("--activation_checkpointing needs less: it keeps the input of each layer alone")
    return lines


def _largest(shape: Shape, job: Job, where: tuple[str, int], gpu_bytes: float, each: int) -> int:
    """The largest batch below the planned one that fits with a strategy on so many GPUs; 0 for none.

    Nothing but training depends on it here: a rollout takes what fits.
    """
    strategy, gpus = where
    low, high = 0, job.rows // each
    while high - low > 1:
        middle = (low + high) // 2
        fits = memory(shape, replace(job, rows=middle * each), strategy, gpus, gpu_bytes)["peak"] <= 0.9 * gpu_bytes
        low, high = (middle, high) if fits else (low, middle)
    return low
