"""Whole steps of GRPO: ours against TRL alone (`trainers.bench.plain_grpo`), same model, prompts, candidates, tokens.

A step is all from the end of one to the end of the next: draw, score, reference, loss, backward, optimizer, log.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from rewards import load_rewards
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet
from trainers.bench.measure import Size
from trainers.bench.mid import ACTIONS, mid_base, random_pictures
from trainers.bench.plain_grpo import plain_trainer
from trainers.common.adapters import add_adapter, only_policy_trains
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer

BETA = 0.04
"""Of the KL term, so that a reference is read."""


def ours(size: Size) -> dict[str, Any]:
    """Policy, reference and inverse model as adapters on one backbone."""
    vlm = mid_base(size)
    for name in ("default", "idm"):
        add_adapter(vlm, lora(size), name)
    only_policy_trains(vlm)
    sources, actions = prompts(vlm, size)
    pictures = vlm.decode(torch.tensor(sources).numpy())
    triplets = [Triplet(picture, words) for picture, words in zip(pictures, actions, strict=True)]
    rewards = load_rewards(["idm_likelihood"], InverseDynamics(vlm, "idm"), [*ACTIONS])
    with tempfile.TemporaryDirectory() as folder:
        return steps(WorldModelGRPOTrainer(vlm, triplets, rewards, RewindGRPOConfig(**settings(size, folder))))


def baseline(size: Size) -> dict[str, Any]:
    """Three models, and TRL's trainer as it is."""
    models = (mid_base(size), mid_base(size), mid_base(size))
    with tempfile.TemporaryDirectory() as folder:
        return steps(plain_trainer(models, *prompts(models[0], size), settings(size, folder), lora(size)))


def prompts(vlm: UnifiedVLM, size: Size) -> tuple[list[list[int]], list[str]]:
    """Image ids of sources and actions, of as many prompts as all steps have."""
    count = size["prompts"] * (size["repeats"] + 1)
    return random_pictures(vlm, count), [ACTIONS[n % len(ACTIONS)] for n in range(count)]


def lora(size: Size) -> LoraConfig:
    """The adapter that is trained."""
    return LoraConfig(r=size["r"], target_modules=list(LINEAR_LAYERS))


def settings(size: Size, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(Path(folder) / "run"),
        "max_steps": size["repeats"] + 1,
        "num_generations": size["candidates"],
        "per_device_train_batch_size": size["prompts"] * size["candidates"],
        "learning_rate": 1e-5,
        "beta": BETA,
        "gradient_checkpointing": False,
        "bf16": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def steps(trainer: Any) -> dict[str, Any]:
    """Seconds of each step after the first, which is not counted."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"seconds": [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]}
