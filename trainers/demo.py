"""The main job on a world, in one process: from video without labels to a forward model improved by its inverse model.

Each stage trains one adapter on the one backbone and keeps it in a run folder of its own (arXiv 2506.06006; GRPO and
best-of-N training after 2509.23958). The oracle only measures: no stage is rewarded or selected by it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig
from transformers import set_seed

from rewards import Reward, load_rewards
from rewards.keep_unchanged import KeepUnchanged
from rl.data.importance import Importance
from rl.data.keyframes import Mining, flow_magnitudes
from rl.data.labelling import label_pairs
from rl.data.selection import select_stratified
from rl.evaluation.oracle import Task, sample_tasks
from rl.models.dynamics import ForwardDynamics, InverseDynamics, token_ids
from rl.triplets import Triplet
from rl.unified import UnifiedVLM
from rl.world import World
from trainers.arguments import RewindGRPOConfig, RoleConfig
from trainers.best_of_n import Keep, best_candidates
from trainers.grpo import WorldModelGRPOTrainer
from trainers.grpo_recipe import only_policy_trains
from trainers.pretraining import MetricsFile
from trainers.sft import LINEAR_LAYERS, Role, RoleSFTTrainer, add_adapter, role_rows, save_adapter

logger = logging.getLogger("rl")


@dataclass(frozen=True)
class Budget:
    """How much of everything. The defaults are the demo's."""

    labelled: int = 2000
    videos: int = 300
    selected: int = 500
    test: int = 400
    validation: int = 100
    idm_steps: int = 250
    fdm_steps: int = 200
    grpo_steps: int = 25
    grpo_prompts: int = 32
    group_size: int = 8
    best_of_n_steps: int = 60
    batch_size: int = 64
    idm_rank: int = 64
    fdm_rank: int = 32
    learning_rate: float = 3e-3
    rl_learning_rate: float = 1e-3
    candidates: int = 16


@dataclass
class Story:
    """What the stages hand on, and how long each took."""

    world: World
    splits: dict[str, World]
    vlm: UnifiedVLM
    output: Path
    seed: int
    budget: Budget
    seconds: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    labelled: list[Triplet] = field(default_factory=list)
    synthetic: list[Triplet] = field(default_factory=list)
    pairs: list[Triplet] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    gap: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and keep its time."""
        logger.warning("--- %s", name)
        begin = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def fdm(self, name: str) -> ForwardDynamics:
        """A system by its name; 'base' is the bare base."""
        return ForwardDynamics(self.vlm, None if name == "base" else name)

    @property
    def idm(self) -> InverseDynamics:
        """The inverse model."""
        return InverseDynamics(self.vlm, "idm")


def begin(splits: dict[str, World], vlm: UnifiedVLM, output: Path, seed: int, budget: Budget) -> Story:
    """Draw the labelled data."""
    set_seed(seed)
    story = Story(splits["train"], splits, vlm, output, seed, budget)
    with story.stage("data"):
        story.labelled = triplets_of(splits["train"], sample_tasks(splits["train"], budget.labelled, seed), "world")
        story.data = {"labelled": len(story.labelled), "test": budget.test}
    return story


def triplets_of(world: World, tasks: Sequence[Task], provenance: str) -> list[Triplet]:
    """Test cases of a world as triplets."""
    family = getattr(world, "family", lambda action: None)
    return [Triplet(t.source, t.action, t.target, task=family(t.action), provenance=provenance) for t in tasks]


def train_sft(
    story: Story,
    name: str,
    role: Role,
    triplets: Sequence[Triplet],
    steps: int,
    importance: Importance | None = None,
) -> None:
    """Train a fresh adapter `name` for a role and keep it in the run folder `name`."""
    budget = story.budget
    with story.stage(name):
        set_seed(story.seed)
        rank = budget.idm_rank if role == "idm" else budget.fdm_rank
        add_adapter(
            story.vlm,
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=set(LINEAR_LAYERS), lora_dropout=0.0),
            name,
        )
        only_policy_trains(story.vlm, name)
        folder = story.output / name
        rows = role_rows(story.vlm, role, triplets, importance)
        config = _config(story, folder, steps, budget.learning_rate, budget.batch_size)
        callbacks = [MetricsFile(folder / "metrics.jsonl")]
        RoleSFTTrainer(story.vlm, role, config, rows, use_weights=importance is not None, callbacks=callbacks).train()
        save_adapter(story.vlm, folder, name)


def _config(story: Story, folder: Path, steps: int, learning_rate: float, batch_size: int) -> RoleConfig:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    return RoleConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=batch_size,
        warmup_steps=max(1, steps // 20),
        save_strategy="no",
        gradient_checkpointing=False,
        seed=story.seed,
    )


def mine_and_label(story: Story) -> None:
    """Key frames of videos (for a world without, scene and outcome), named by the IDM; the best are selected."""
    world, budget = story.splits["train"], story.budget
    rng = np.random.default_rng((story.seed, 1))
    truths: dict[int, set[tuple[Any, Any]]] = {}  # by the identity of a pair's first picture
    film = getattr(world, "video", None)
    with story.stage("labels"):
        if film is None:
            tasks = sample_tasks(world, budget.videos, story.seed + 1)
            story.pairs = [replace(t, action="") for t in triplets_of(world, tasks, "pair")]
            truths = {id(t.source): {(t.scene, t.outcome)} for t in tasks}
        for _ in range(budget.videos if film is not None else 0):
            video = film(rng)  # type: ignore[misc]
            for a, b in Mining("settled").pairs(flow_magnitudes(video.frames_THWC)):
                before, after = video.frames_THWC[a], video.frames_THWC[b]
                story.pairs.append(Triplet(before, "", after, label=video.label, provenance="video"))
                truths[id(before)] = {(s.source, s.target) for s in video.truth}
        named = label_pairs(story.idm, story.pairs, seed=story.seed)
        labels: list[str] = [triplet.label or "" for triplet in named]
        chosen = select_stratified([t.score or 0.0 for t in named], labels, budget.selected)
        family = getattr(world, "family", lambda action: None)
        story.synthetic = [replace(named[i], task=family(named[i].action)) for i in chosen]
        story.data |= {"unlabelled_pairs": len(story.pairs), "selected": len(story.synthetic)}
        story.data |= _truth_of_labels(story, named, truths)


def _truth_of_labels(
    story: Story, named: Sequence[Triplet], truths: dict[int, set[tuple[Any, Any]]]
) -> dict[str, float]:
    """For the report alone: the share of pairs that hold exactly one action, and of labels that name it."""
    read = getattr(story.world, "read", None)
    if read is None:
        return {}
    before = [reading.scene for reading in read(np.stack([np.asarray(t.source) for t in named]))]
    after = [reading.scene for reading in read(np.stack([np.asarray(t.target) for t in named]))]
    one = [(a, b) in truths[id(t.source)] for a, b, t in zip(before, after, named, strict=True)]
    right = [
        a is not None and b in story.world.outcomes(a, t.action) for a, b, t in zip(before, after, named, strict=True)
    ]
    return {"pairs_with_one_action": float(np.mean(one)), "label_accuracy": float(np.mean(right))}


def rewards_of(story: Story) -> list[Reward]:
    """`idm_margin` and `keep_unchanged`; as much change as labelled data of the task shows is free."""
    vlm = story.vlm
    sources = token_ids(vlm, [t.source for t in story.labelled])
    targets = token_ids(vlm, [t.target for t in story.labelled if t.target is not None])
    by_task: dict[str, list[int]] = {}
    for triplet, a, b in zip(story.labelled, sources, targets, strict=True):
        by_task.setdefault(triplet.task or "", []).append(sum(x != y for x, y in zip(a, b, strict=True)))
    free = {task: float(np.quantile(counts, 0.95)) for task, counts in by_task.items()}
    keep = Reward.of(KeepUnchanged(free, max(free.values())), "keep_unchanged", 0.25)
    margin = load_rewards(["idm_margin=1.0"], story.idm, [t.action for t in story.labelled])
    return [*margin, keep]


def improve(story: Story) -> None:
    """GRPO and best-of-N training, both from `bootstrapped`, with the same number of sampled candidates."""
    budget, vlm = story.budget, story.vlm
    prompts = [*story.labelled, *story.synthetic]
    story.data["grpo_prompts"] = len(prompts)
    with story.stage("grpo"):
        set_seed(story.seed)
        vlm.attach_adapter(story.output / "bootstrapped" / "adapter", "default")
        only_policy_trains(vlm)
        folder = story.output / "grpo"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        config = RewindGRPOConfig(
            output_dir=str(folder),
            max_steps=budget.grpo_steps,
            learning_rate=budget.rl_learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=2,
            num_generations=budget.group_size,
            per_device_train_batch_size=budget.grpo_prompts * budget.group_size,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            seed=story.seed,
        )
        callbacks = [MetricsFile(folder / "metrics.jsonl")]
        trainer = WorldModelGRPOTrainer(vlm, prompts, rewards_of(story), config, callbacks=callbacks)
        trainer.train()
        story.gap = trainer.sampler_trainer_gap
        history = trainer.state.log_history
        story.curves["reward"] = [(row["step"], row["reward"]) for row in history if "reward" in row]
        save_adapter(vlm, folder)
    with story.stage("best_of_n_training"):
        set_seed(story.seed)
        name, folder = "best_of_n_training", story.output / "best_of_n_training"
        vlm.attach_adapter(story.output / "bootstrapped" / "adapter", name)
        order = np.random.default_rng(story.seed).permutation(len(prompts))
        part = [prompts[i] for i in order[: budget.grpo_steps * budget.grpo_prompts]]
        keep = Keep(budget.group_size, min_lead=0.1)
        kept, _ = best_candidates(story.fdm(name), rewards_of(story), part, keep, seed=story.seed)
        only_policy_trains(vlm, name)
        if kept:
            rows = role_rows(vlm, "fdm", [t for t, _ in kept], candidates=[best.candidate for _, best in kept])
            config = _config(story, folder, budget.best_of_n_steps, budget.rl_learning_rate / 3, budget.batch_size)
            RoleSFTTrainer(vlm, "fdm", config, rows, callbacks=[MetricsFile(folder / "metrics.jsonl")]).train()
        save_adapter(vlm, folder, name)
