"""The main job on a world, in one process: from video without labels to a forward model improved by its inverse model.

Each stage trains one adapter on the one backbone and keeps it in a run folder of its own (arXiv 2506.06006; GRPO and
best-of-N training after 2509.23958). The oracle only measures: no stage is rewarded or selected by it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from rl.data.triplets_io import read_triplets, write_triplets
from rl.errors import RewindError
from rl.evaluation.oracle import Task, judge_all, sample_tasks
from rl.models.bases import BASE_OF_WORLD, CARD_FILE, JUDGES, SHIPPED_RUNS, load_base
from rl.models.dynamics import token_ids
from rl.triplets import Candidate, Triplet
from rl.unified import UnifiedVLM
from rl.world import World
from trainers.arguments import RewindGRPOConfig, RoleConfig
from trainers.base_arguments import base_parser
from trainers.base_recipe import make_base
from trainers.best_of_n import Keep, keep_best, kept_rows
from trainers.candidates import scored_groups
from trainers.demo_story import Budget, Story
from trainers.grpo import WorldModelGRPOTrainer
from trainers.grpo_recipe import only_policy_trains
from trainers.pretraining import MetricsFile, show_quietly
from trainers.sft import LINEAR_LAYERS, Role, RoleSFTTrainer, add_adapter, role_rows, save_adapter

logger = logging.getLogger("rl")
JUDGE_SEED = 1_000_003
"""Added to the seed for what a judge IDM learns from, so that it never sees the rewarding IDM's labels."""
KEEP_WEIGHT = 1.0
"""Weight of `keep_unchanged` beside an `idm_margin` of 1."""
LORA_ALPHA = 4
"""alpha of every adapter as a multiple of its rank."""


def open_base(base: str | None, world_name: str, world: World, output: Path, steps: int) -> UnifiedVLM:
    """The base to stand on: the one given, the one that ships for the world, or one pretrained in `output/base`.

    Raises:
        RewindError: a base for pictures of another size.
    """
    name = base or BASE_OF_WORLD.get(world_name)
    if name is None:
        name = str(output / "base")
        if not (output / "base" / CARD_FILE).is_file():
            logger.warning(
                "the world '%s' has no shipped base: one is pretrained first, into %s (about an hour on 2 cores; give "
                "it as --base the next time)",
                *(world_name, name),
            )
            flags: dict[str, Any] = {"world": world_name, "output": name, "steps": steps, "merge_codes": 0.5}
            flags |= {"tokenizer_steps": max(2, steps // 2), "num_pairs": 8 * steps, "num_videos": max(1, steps // 8)}
            argv = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
            make_base(base_parser().parse_args([*argv, "--resume"]))
    vlm = load_base(name)
    if vlm.image_size != world.image_size:
        raise RewindError(
            f"{name} sees {vlm.image_size} pixels and the world {world_name} draws {world.image_size}: pretrain a base "
            "on the world (pretrain_base.py) and give it as --base"
        )
    return vlm


def begin(splits: dict[str, World], vlm: UnifiedVLM, output: Path, seed: int, budget: Budget) -> Story:
    """Draw the labelled data and write the test cases; what an interrupted run finished is taken over."""
    story = Story(splits["train"], splits, vlm, output, seed, budget)
    story.restore()
    story.labelled = triplets_of(splits["train"], sample_tasks(splits["train"], budget.labelled, seed), "world")

    def write() -> None:
        test = triplets_of(splits["test"], sample_tasks(splits["test"], budget.test, seed), "world")
        write_triplets(test, output / "test")
        story.data |= {"labelled": len(story.labelled), "test": len(test)}

    story.stage("data", write)
    return story


def triplets_of(world: World, tasks: Sequence[Task], provenance: str) -> list[Triplet]:
    """Test cases of a world as triplets."""
    family = getattr(world, "family", lambda action: None)
    return [Triplet(t.source, t.action, t.target, task=family(t.action), provenance=provenance) for t in tasks]


def train_roles(story: Story) -> None:
    """The inverse model, and the forward model on labelled data, with the usual steps and with twice as many."""
    budget = story.budget
    _sft(story, "idm", "idm", story.labelled, budget.idm_steps, budget.idm_learning_rate)
    story.stage("judge_idm", lambda: _judge_idm(story), "judge_idm")
    for name, times in (("sft", 1), ("sft_twice_as_long", 2)):
        _sft(story, name, "fdm", story.labelled, times * budget.fdm_steps, budget.sft_learning_rate)


def bootstrap(story: Story) -> None:
    """Labels for video by the inverse model, and a forward model on both kinds of data with token weights."""
    story.stage("labels", lambda: _mine_and_label(story))
    if not story.synthetic:
        story.synthetic, story.tried = labelled_by_idm(story.output)
    both, budget = [*story.labelled, *story.synthetic], story.budget
    _sft(story, "bootstrapped", "fdm", both, budget.fdm_steps, budget.bootstrapped_learning_rate, Importance())


def improve(story: Story) -> None:
    """GRPO and best-of-N training, both from `bootstrapped`, with the same number of sampled candidates."""
    story.stage("grpo", lambda: _grpo(story), "default")
    story.stage("best_of_n_training", lambda: _best_of_n_training(story), "best_of_n_training")


def _sft(
    story: Story,
    name: str,
    role: Role,
    triplets: Sequence[Triplet],
    steps: int,
    learning_rate: float,
    importance: Importance | None = None,
) -> None:
    """A fresh adapter `name` for a role, kept in the run folder `name`."""

    def work() -> None:
        set_seed(story.seed)
        rank = story.budget.idm_rank if role == "idm" else story.budget.fdm_rank
        lora = LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, target_modules=set(LINEAR_LAYERS), lora_dropout=0.0)
        add_adapter(story.vlm, lora, name)
        _fit(story, name, name, role, role_rows(story.vlm, role, triplets, importance), steps, learning_rate)

    story.stage(name, work, name)


def _fit(story: Story, folder: str, adapter: str, role: Role, rows: Any, steps: int, learning_rate: float) -> None:
    """Train an adapter that is on the backbone by SFT and save it."""
    only_policy_trains(story.vlm, adapter)
    run = _run_folder(story, folder)
    config = RoleConfig(
        output_dir=str(run),
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        per_device_train_batch_size=story.budget.idm_batch_size if role == "idm" else story.budget.fdm_batch_size,
        warmup_steps=max(1, steps // 20),
        save_strategy="no",
        gradient_checkpointing=False,
        seed=story.seed,
    )
    weighted, log = "weights" in rows.column_names, MetricsFile(run / "metrics.jsonl")
    trainer = RoleSFTTrainer(story.vlm, role, config, rows, use_weights=weighted, callbacks=[log])
    show_quietly(trainer)
    trainer.train()
    save_adapter(story.vlm, run, adapter)


def _run_folder(story: Story, name: str) -> Path:
    """A fresh folder for a stage's run; what an interrupted attempt left in it goes."""
    run = story.output / name
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    about = {"script": "demo.py", "stage": name, "config": {"seed": story.seed, **asdict(story.budget)}}
    (run / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / "tensorboard")
    return run


def _judge_idm(story: Story) -> None:
    """The judge that ships with the base, or one trained on labels of its own. It never rewards or labels."""
    shipped = JUDGES.get(story.vlm.name)
    if shipped is not None:
        shutil.copytree(SHIPPED_RUNS[shipped], story.output / "judge_idm", dirs_exist_ok=True)
        story.vlm.attach_adapter(story.output / "judge_idm" / "adapter", "judge_idm")
        return
    budget, seed = story.budget, story.seed + JUDGE_SEED
    story.data["judge_labelled"] = budget.labelled
    triplets = triplets_of(story.world, sample_tasks(story.world, budget.labelled, seed), "world")
    set_seed(seed % 2**32)
    rank = budget.idm_rank
    lora = LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, target_modules=set(LINEAR_LAYERS), lora_dropout=0.0)
    add_adapter(story.vlm, lora, "judge_idm")
    rows = role_rows(story.vlm, "idm", triplets)
    _fit(story, "judge_idm", "judge_idm", "idm", rows, budget.idm_steps, budget.idm_learning_rate)


def _mine_and_label(story: Story) -> None:
    """Key frames of videos (for a world without, scene and outcome), named by the IDM; the best are selected."""
    world, budget = story.world, story.budget
    rng = np.random.default_rng((story.seed, 1))
    pairs: list[Triplet] = []
    truths: dict[int, set[tuple[Any, Any]]] = {}  # by the identity of a pair's first picture
    film = getattr(world, "video", None)
    if film is None:
        tasks = sample_tasks(world, budget.videos, story.seed + 1)
        pairs = [replace(t, action="") for t in triplets_of(world, tasks, "pair")]
        truths = {id(t.source): {(t.scene, t.outcome)} for t in tasks}
    for _ in range(budget.videos if film is not None else 0):
        video = film(rng)  # type: ignore[misc]
        for a, b in Mining("settled").pairs(flow_magnitudes(video.frames_THWC)):
            before, after = video.frames_THWC[a], video.frames_THWC[b]
            pairs.append(Triplet(before, "", after, label=video.label, provenance="video"))
            truths[id(before)] = {(s.source, s.target) for s in video.truth}
    named = label_pairs(story.idm, pairs, seed=story.seed)
    labels: list[str] = [triplet.label or "" for triplet in named]
    chosen = select_stratified([t.score or 0.0 for t in named], labels, budget.selected)
    family = getattr(world, "family", lambda action: None)
    named = [replace(triplet, task=family(triplet.action)) for triplet in named]
    story.synthetic = [named[i] for i in chosen]
    story.tried = [replace(named[i], target=None) for i in sorted({*range(len(named))} - {*chosen.tolist()})]
    write_triplets(story.synthetic, story.output / "labelled")
    if story.tried:
        write_triplets(story.tried, story.output / "tried")
    story.data |= {"unlabelled_pairs": len(pairs), "selected": len(story.synthetic)}
    story.data |= _truth_of_labels(story, named, chosen.tolist(), truths)


def _truth_of_labels(
    story: Story, named: Sequence[Triplet], chosen: Sequence[int], truths: dict[int, set[tuple[Any, Any]]]
) -> dict[str, float]:
    """For the report alone: the share of pairs that hold exactly one action, and of selected labels that name it."""
    read = getattr(story.world, "read", None)
    if read is None:
        return {}
    before = [reading.scene for reading in read(np.stack([np.asarray(t.source) for t in named]))]
    after = [reading.scene for reading in read(np.stack([np.asarray(t.target) for t in named]))]
    one = [(a, b) in truths[id(t.source)] for a, b, t in zip(before, after, named, strict=True)]
    right = [
        a is not None and b in story.world.outcomes(a, t.action) for a, b, t in zip(before, after, named, strict=True)
    ]
    return {
        "pairs_with_one_action": float(np.mean(one)),
        "label_accuracy": float(np.mean([right[i] for i in chosen])),
        "label_accuracy_before_selection": float(np.mean(right)),
    }


def labelled_by_idm(run: Path) -> tuple[list[Triplet], list[Triplet]]:
    """The selected triplets of a run, and those that are only tried in RL."""
    files = [run / name / "triplets.json" for name in ("labelled", "tried")]
    return read_triplets(files[0]), read_triplets(files[1]) if files[1].is_file() else []


def rewards_of(story: Story, background: float | None = None) -> list[Reward]:
    """`idm_margin` and `keep_unchanged`; as much change as is usual in labelled data of the task is free.

    The usual amount is the median. Most candidates that carry out the action and still are wrong change one token too
    many, which a higher quantile lets pass and no inverse model minds: `docs/findings/grpo.md` has the figures.
    """
    vlm = story.vlm
    sources = token_ids(vlm, [t.source for t in story.labelled])
    targets = token_ids(vlm, [t.target for t in story.labelled if t.target is not None])
    by_task: dict[str, list[int]] = {}
    for triplet, a, b in zip(story.labelled, sources, targets, strict=True):
        by_task.setdefault(triplet.task or "", []).append(sum(x != y for x, y in zip(a, b, strict=True)))
    free = {task: float(np.median(counts)) for task, counts in by_task.items()}
    keep = Reward.of(KeepUnchanged(free, max(free.values())), "keep_unchanged", KEEP_WEIGHT)
    actions = [t.action for t in story.labelled]
    arguments = {"idm_margin": {"background": background}}
    return [*load_rewards(["idm_margin=1.0"], story.idm, actions, arguments=arguments), keep]


def grpo_prompts(story: Story) -> list[Triplet]:
    """Sources and actions to try, in a fixed random order: labelled ones and all that the IDM named, selected or not.

    What is tried needs no right target, and what supervised training has not seen is what there is to learn from.
    """
    both = [*story.labelled, *story.synthetic, *story.tried]
    story.data["grpo_prompts"] = len(both)
    return [both[i] for i in np.random.default_rng(story.seed).permutation(len(both))]


def _grpo(story: Story) -> None:
    budget, vlm = story.budget, story.vlm
    prompts = grpo_prompts(story)
    set_seed(story.seed)
    vlm.attach_adapter(story.output / "bootstrapped" / "adapter", "default")
    only_policy_trains(vlm)
    run = _run_folder(story, "grpo")
    validation = sample_tasks(story.splits["validation"], budget.validation, story.seed)[: budget.grpo_validation]
    tasks = {id(task.source): task for task in validation}

    def oracle(triplets: Sequence[Triplet], candidates: Sequence[Candidate]) -> dict[str, float]:
        images = vlm.decode(np.stack([candidate.ids for candidate in candidates]))
        cases = [tasks[id(triplet.source)] for triplet in triplets]
        return {"oracle_success": float(np.mean([j.success for j in judge_all(story.world, cases, images)]))}

    every = max(1, budget.grpo_steps // budget.grpo_evaluations)
    config = RewindGRPOConfig(
        output_dir=str(run),
        max_steps=every * (budget.grpo_steps // every),
        learning_rate=budget.rl_learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=2,
        num_generations=budget.group_size,
        per_device_train_batch_size=budget.grpo_prompts * budget.group_size,
        per_device_eval_batch_size=len(validation) * budget.group_size,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=True,
        gradient_checkpointing=False,
        logging_steps=1,
        seed=story.seed,
    )
    trainer = WorldModelGRPOTrainer(
        vlm,
        prompts,
        rewards_of(story),
        config,
        validation=triplets_of(story.splits["validation"], validation, "world"),
        oracle=oracle,
        importance_advantages="group",
        callbacks=[MetricsFile(run / "metrics.jsonl")],
    )
    show_quietly(trainer)
    trainer.train()
    story.gap = trainer.sampler_trainer_gap
    for name, key in (("reward", "reward"), ("validation reward", "eval_reward"), ("success", "eval_oracle_success")):
        story.curves[name] = [(row["step"], row[key]) for row in trainer.state.log_history if key in row]
    save_adapter(vlm, run)
    for checkpoint in run.glob("checkpoint-*"):  # they hold every adapter of the backbone; the best is saved above
        shutil.rmtree(checkpoint)


def _best_of_n_training(story: Story) -> None:
    budget, vlm, name = story.budget, story.vlm, "best_of_n_training"
    set_seed(story.seed)
    vlm.attach_adapter(story.output / "bootstrapped" / "adapter", name)
    part = grpo_prompts(story)[: budget.grpo_steps * budget.grpo_prompts]
    keep = Keep(budget.group_size, min_lead=0.1)
    groups = scored_groups(story.fdm(name), rewards_of(story), part, keep.num_candidates, seed=story.seed)
    kept, _ = keep_best(vlm, groups, keep)
    if kept:
        rows = kept_rows(vlm, kept)
        _fit(story, name, name, "fdm", rows, budget.best_of_n_steps, budget.best_of_n_learning_rate)
    else:
        logger.warning("no group had a candidate that leads: 'best_of_n_training' stays 'bootstrapped'")
        save_adapter(vlm, _run_folder(story, name), name)
