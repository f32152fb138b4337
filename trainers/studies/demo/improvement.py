"""The main job's stages of reinforcement learning: GRPO and best-of-N training, both from `bootstrapped`, or from `sft`
where that was held back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from transformers import set_seed

from rl.evaluation.oracle import judge_all, sample_tasks, triplets_of
from rl.triplets import Candidate, Triplet
from trainers.best_of_n.keep import Keep, keep_best, kept_rows
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.candidates import scored_groups
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile, show_quietly
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.studies.demo.fitting import fit_adapter, stage_folder
from trainers.studies.demo.mixes import grpo_rewards, mixed_rewards, start_of_rl
from trainers.studies.demo.proposals import proposed
from trainers.studies.demo.story import Story

logger = logging.getLogger("rl")


def grpo_prompts(story: Story) -> list[Triplet]:
    """Sources and actions to try, in a fixed random order: what was proposed, if the budget has a proposer; else
    labelled ones and all that the IDM named, selected or not.

    What is tried needs no right target, and what supervised training has not seen is what there is to learn from.
    """
    if story.budget.proposer_steps:
        fresh = proposed(story)
        story.data["grpo_prompts"] = len(fresh)
        return fresh
    both = [*story.labelled, *story.synthetic, *story.tried]
    story.data["grpo_prompts"] = len(both)
    return [both[i] for i in np.random.default_rng(story.seed).permutation(len(both))]


def train_grpo(story: Story) -> None:
    budget, vlm, start = story.budget, story.vlm, start_of_rl(story)
    prompts = grpo_prompts(story)
    set_seed(story.seed)
    vlm.attach_adapter(story.output / start / "adapter", "default")
    only_policy_trains(vlm)
    run = stage_folder(story, "grpo")
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
        scale_rewards="group",  # without it the same run gains half (docs/findings/few-labels.md)
        per_device_train_batch_size=budget.grpo_prompts * budget.group_size,
        per_device_eval_batch_size=len(validation) * budget.group_size,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=True,
        save_strategy="no",  # the last step counts: where validation reward is highest the model need not be best
        activation_checkpointing=False,
        logging_steps=1,
        seed=story.seed,
    )
    trainer = WorldModelGRPOTrainer(
        vlm,
        prompts,
        grpo_rewards(story, start),
        config,
        validation=triplets_of(story.splits["validation"], validation, "world"),
        oracle=oracle,
        importance_advantages="group",
        callbacks=[MetricsFile(run / "metrics.jsonl")],
    )
    show_quietly(trainer)
    fit(trainer, run, resume=False, batch="grpo_prompts or grpo_validation of the budget")
    story.gap = trainer.sampler_trainer_gap
    for name, key in (("reward", "reward"), ("validation reward", "eval_reward"), ("success", "eval_oracle_success")):
        story.curves[name] = [(row["step"], row[key]) for row in trainer.state.log_history if key in row]
    save_adapter(vlm, run, role="fdm")


def train_best_of_n(story: Story) -> None:
    """Rounds of drawing, choosing by the mix and fine-tuning: expert iteration on as many candidates as GRPO takes."""
    budget, vlm, name, start = story.budget, story.vlm, "best_of_n_training", start_of_rl(story)
    set_seed(story.seed)
    vlm.attach_adapter(story.output / start / "adapter", name)
    part = grpo_prompts(story)[: budget.grpo_steps * budget.grpo_prompts]
    keep = Keep(budget.group_size, min_lead=0.1)
    rewards, run, trained = mixed_rewards(story, start, frozen=start), stage_folder(story, name), False
    for number, prompts in enumerate(np.array_split(np.arange(len(part)), budget.rounds)):
        drawn = scored_groups(
            story.fdm(name), rewards, [part[i] for i in prompts], keep.num_candidates, seed=story.seed, step=number
        )
        kept, totals = keep_best(vlm, drawn, keep)
        mean = float(np.mean(totals)) if totals else float("nan")
        logger.warning("round %d of %d: mean total %.3f, %d kept", number + 1, budget.rounds, mean, len(kept))
        if kept:
            steps = max(1, budget.best_of_n_steps // budget.rounds)
            rate = budget.best_of_n_learning_rate
            fit_adapter(story, name, name, "fdm", kept_rows(vlm, kept), steps, rate, f"round-{number + 1}")
            trained = True
    if not trained:
        logger.warning("no group had a candidate that leads: '%s' stays '%s'", name, start)
        save_adapter(vlm, run, name, role="fdm")
