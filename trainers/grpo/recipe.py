"""What `scripts/train_grpo.py` does: a forward model and things to try in; an improved run folder out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from transformers import EarlyStoppingCallback, set_seed
from trl import GRPOConfig

from rewards import scorers
from rl.data.chains import chains
from rl.data.left_out import LeftOut
from rl.data.store import CandidateStore, scorer_key
from rl.errors import RewindError
from trainers.common.adapters import save_adapter
from trainers.common.checkpoints import fit
from trainers.common.improvement import open_for_improvement
from trainers.common.metrics import MetricsFile
from trainers.common.preflight import at_least, check_training, check_validation
from trainers.common.refusals import GRPO
from trainers.common.runs import begin_run, check_output, read_files
from trainers.common.sharding import tell, whole_weights
from trainers.common.tokens import use_cache
from trainers.grpo.advantages import Credit, groups_span
from trainers.grpo.arguments import GRPOArguments
from trainers.grpo.checks import check_grpo, check_options, check_trajectories
from trainers.grpo.identity import check_correction
from trainers.grpo.judge import load_judge
from trainers.grpo.monitors import Monitors, rules_of
from trainers.grpo.profile import Profile
from trainers.grpo.trainer import WorldModelGRPOTrainer

logger = logging.getLogger("rl")


def warn_of_divided_groups(config: GRPOConfig, steps: int = 1) -> None:
    """Say once if processes share a group, of trajectories of so many steps: a reward that compares candidates then
    sees only a part of them.
    """
    sizes = {"train": (config.per_device_train_batch_size * config.steps_per_generation, config.num_generations)}
    if config.eval_strategy != "no":
        sizes["eval"] = (config.per_device_eval_batch_size, config.num_generations_eval or config.num_generations)
    for kind, (rows, members) in sizes.items():
        group = members * steps
        if groups_span(rows, group, config.world_size) and config.process_index == 0:
            logger.warning(
                "groups of %d candidates are divided among processes, which draw %d each: a reward that compares the "
                "candidates of a group, as idm_margin does, sees only its process's part; a "
                "--per_device_%s_batch_size that is a multiple of %d avoids it",
                *(group, rows, kind, group),
            )
            return


def train_grpo(arguments: GRPOArguments, config: GRPOConfig) -> Path:
    """Improve a forward model by rewards; returns the run folder, which `load_fdm` opens."""
    check_output(config)
    if arguments.early_stop and not config.load_best_model_at_end:
        raise RewindError("--early_stop needs --load_best_model_at_end true --metric_for_best_model eval_reward")
    check_training(config, GRPO, arguments)
    at_least(0, early_stop=arguments.early_stop, dead_group_retries=arguments.dead_group_retries)
    check_validation(config, arguments.validation)
    check_options(config, arguments.rewards)
    check_correction(arguments.max_sampler_gap, arguments.importance_correction)
    check_trajectories(config, arguments.rollout_steps, arguments.rollout_credit, arguments.normalise_rewards)
    set_seed(config.seed)
    left_out: list[LeftOut] = []
    fdm, idm, triplets, rewards = open_for_improvement(arguments, left_out)
    vlm = fdm.backbone
    fdm.check(temperature=config.temperature, guidance=arguments.guidance)
    validation = read_files(arguments, arguments.validation, left_out)
    rules = rules_of(arguments.monitors, arguments.judge_idm is not None)
    kind: Any = arguments.importance_advantages
    steps, credit = arguments.rollout_steps, cast(Credit, arguments.rollout_credit)
    check_grpo(
        config,
        chains(triplets, steps),
        chains(validation, steps),
        rollout_steps=steps,
        spread_floor=arguments.spread_floor,
        importance_advantages=kind,
    )
    with whole_weights():
        judge = load_judge(arguments.judge_idm, vlm, **arguments.opening()) if arguments.judge_idm is not None else None
    inputs = [arguments.fdm, arguments.idm, arguments.judge_idm, *arguments.triplets, *arguments.validation]
    output = begin_run("train_grpo.py", arguments, config, inputs, left_out, vlm=vlm, scorers=scorers(rewards))
    with whole_weights():
        others = [one.backbone for one in (idm, judge) if one is not None]
        use_cache(arguments.token_cache, [vlm, *others], triplets, validation)
    early = [EarlyStoppingCallback(arguments.early_stop)] if arguments.early_stop else []
    if arguments.normalise_rewards:
        config.multi_objective_aggregation = "normalize_then_sum"
    warn_of_divided_groups(config, steps)
    monitors = Monitors(rules, output / "monitors.json", judge)
    profile = [Profile()] if arguments.profile else []
    for one in profile:
        rewards = one.timed(rewards)
    trainer = WorldModelGRPOTrainer(
        vlm,
        triplets,
        rewards,
        config,
        validation=validation,
        dead_group_retries=arguments.dead_group_retries,
        spread_floor=arguments.spread_floor,
        importance_advantages=kind,
        guidance=arguments.guidance,
        rollout_steps=steps,
        rollout_credit=credit,
        max_sampler_gap=arguments.max_sampler_gap,
        importance_correction=arguments.importance_correction,
        monitors=monitors,
        store=CandidateStore(
            output / "candidates", scorer_key(arguments.idm, arguments.reward_arguments), scorers(rewards)
        ),
        callbacks=[MetricsFile(output / "metrics.jsonl"), *early, *profile],
    )
    for one in profile:
        one.trainer = trainer
    fit(trainer, output, arguments.resume)
    monitors.check(output)
    folder = save_adapter(vlm, output, role="fdm")
    tell("%d steps; the adapter is in %s", trainer.state.global_step, folder)
    return output
