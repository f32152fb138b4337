"""What the studies share that train several systems from runs of the main job: GRPO of a role, and what they keep."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from rl.errors import RewindError
from rl.models.roles import Role
from rl.running.files import read_json, write_whole
from rl.triplets import Triplet
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile, show_quietly
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.studies.demo.story import Story

logger = logging.getLogger("rl")
GROUP, PROMPTS = 8, {"fdm": 16, "idm": 32}
"""Candidates of a group, and groups a step of either role (fewer where there are fewer pairs)."""
CONSTANT = "base or more memory: a study's batch is a constant"
"""What helps where memory ends, since no flag lowers the batch (`trainers.common.checkpoints.fit`)."""
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
    fit(trainer, folder, resume=False, batch=CONSTANT)
    save_adapter(vlm, folder, role=role)
    drop(story, "default", "ref")  # TRL's copy of the start, which the KL term takes
    told = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    return [float(np.mean(part)) for part in np.array_split(told, min(4, len(told)))]


def drop(story: Story, *names: str) -> None:
    """Take adapters off the backbone, those of them that are on it."""
    model: Any = story.vlm.model
    for name in names:
        if name in model.peft_config:
            model.delete_adapter(name)


def attached(story: Story, run: Path, name: str) -> None:
    """A run's adapter under a name, in the place of the one that had it."""
    drop(story, name)
    story.vlm.attach_adapter(run / "adapter", name)


def kept(folder: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier call measured in a folder, or do the work and keep it."""
    file = folder / "measured.json"
    if not file.is_file():
        logger.warning("--- %s", folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(work()) + "\n")
    return read_json(file)


def short(values: Sequence[float] | np.ndarray) -> list[float]:
    """Numbers case by case as a file of thousands of them holds them: most are 0 or 1."""
    return [int(value) if value == int(value) else round(float(value), 3) for value in values]


def check_runs(runs: Sequence[Path], needed: Sequence[str]) -> None:
    """Look at the runs of the main job that a study is given, before any work.

    Raises:
        RewindError: a folder without what is needed, two of one name.
    """
    for run in runs:
        if missing := [name for name in needed if not (run / name / "run.json").is_file()]:
            raise RewindError(f"{run} has no '{missing[0]}': give run folders of demo.py or reproduce.py")
    if len({run.name for run in runs}) < len(runs):
        raise RewindError("two of --runs have the same name, which their results would share: rename one")


def write_page(output: Path, page: Path | None, told: dict[str, Any], text: str) -> None:
    """A study's page into its run folder as `results.md` and, if asked for, elsewhere; its JSON beside either."""
    for file in (output / "results.md", page):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file.with_suffix(".json"), json.dumps(told) + "\n")
            write_whole(file, text)
    print(text)
