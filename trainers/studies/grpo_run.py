"""GRPO of either role from an adapter, with the main job's settings, as the studies of several systems run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from rl.models.roles import Role
from rl.triplets import Triplet
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.metrics import MetricsFile, show_quietly
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.studies.demo.story import Story

GROUP, PROMPTS = 8, {"fdm": 16, "idm": 32}
"""Candidates of a group, and groups a step of either role (fewer where there are fewer pairs)."""
SENTENCE_TOKENS = 24
IDM_RATE = 3e-4


def grpo_from(
    story: Story,
    role: Role,
    begin: Path,
    triplets: Sequence[Triplet],
    rewards: Sequence[Any],
    steps: int,
    seed: int,
    folder: Path,
) -> list[float]:
    """GRPO of a role on so many groups a step, its rate falling to 0; returns its reward, as the mean of four parts.

    Of the forward role as in the main job: advantages divided by their group's standard deviation. For the inverse role
    the objective is the ELBO of log p(target | source): rewards are sums, undivided, and the KL term to its own start
    has the weight 1.

    Args:
        story: of the run; the policy's adapter is on its backbone only while this runs.
        role: that learns.
        begin: the run folder whose adapter it begins with.
        triplets: what is tried.
        rewards: with their weights.
        steps: of the optimizer.
        seed: of draws and order.
        folder: gets the adapter and `metrics.jsonl`.
    """
    vlm = story.vlm
    vlm.attach_adapter(begin / "adapter", "default")
    only_policy_trains(vlm)
    set_seed(seed)
    how: dict[Role, dict[str, Any]] = {
        "fdm": {"learning_rate": story.budget.rl_learning_rate, "scale_rewards": "group"},
        "idm": {"learning_rate": IDM_RATE, "loss_type": "dr_grpo", "scale_rewards": "none", "beta": 1.0},
    }
    ours: dict[Role, dict[str, Any]] = {
        "fdm": {"importance_advantages": "group"},
        "idm": {"max_sentence_tokens": SENTENCE_TOKENS, "dead_group_retries": 2},
    }
    config = RewindGRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        lr_scheduler_type="linear",
        warmup_steps=2,
        num_generations=GROUP,
        per_device_train_batch_size=min(PROMPTS[role], len(triplets)) * GROUP,
        save_strategy="no",
        activation_checkpointing=False,
        logging_steps=1,
        report_to="none",
        seed=seed,
        **how[role],
    )
    log = [MetricsFile(folder / "metrics.jsonl")]
    trainer = WorldModelGRPOTrainer(vlm, triplets, rewards, config, callbacks=log, role=role, **ours[role])
    show_quietly(trainer)
    trainer.train()
    save_adapter(vlm, folder, role=role)
    model: Any = vlm.model
    for name in {"default", "ref"} & set(model.peft_config):  # TRL's copy of the start is the KL term's reference
        model.delete_adapter(name)
    told = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    return [float(np.mean(part)) for part in np.array_split(told, min(4, len(told)))]
