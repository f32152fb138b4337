"""What `scripts/train_grpo.py` does: a forward model and things to try in; an improved run folder out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from transformers import EarlyStoppingCallback, set_seed
from trl import GRPOConfig

from rewards import Reward, load_rewards, scorers
from rl.api import FDM_ADAPTER, load_fdm, load_idm, shares_base
from rl.data.chains import chains
from rl.data.store import CandidateStore, scorer
from rl.data.triplets_io import read_triplets
from rl.errors import RewindError
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet
from rl.unified import UnifiedVLM
from trainers.advantages import Credit, groups_span
from trainers.arguments import GRPOArguments, ImproveArguments
from trainers.checkpoints import fit
from trainers.grpo import WorldModelGRPOTrainer
from trainers.grpo_checks import check_grpo, check_options, check_trajectories
from trainers.monitors import Monitors, rules_of
from trainers.pretraining import MetricsFile
from trainers.sft import save_adapter
from trainers.sharding import whole_weights
from trainers.training_run import begin_run, check_output

logger = logging.getLogger("rl")


def only_policy_trains(vlm: UnifiedVLM, adapter: str = FDM_ADAPTER) -> None:
    """Make the policy's adapter the active and only trainable one."""
    vlm.model.set_adapter(adapter)  # type: ignore[operator]
    for name, parameter in vlm.model.named_parameters():
        parameter.requires_grad_(f".{adapter}." in name)


def open_for_improvement(
    arguments: ImproveArguments, triplets: list[Triplet] | None = None
) -> tuple[ForwardDynamics, InverseDynamics | None, list[Triplet], list[Reward]]:
    """The forward model with its adapter alone trainable, the inverse model, what to try, and the rewards.

    `triplets` are tried in place of those that the arguments name.

    Raises:
        RewindError: a missing argument, a bare base, a reward that cannot be loaded.
    """
    if arguments.fdm is None or not (triplets or arguments.triplets):
        raise RewindError("give the model to improve and what to try: --fdm runs/fdm --triplets data/triplets.json")
    if not triplets:
        triplets = [triplet for file in arguments.triplets for triplet in read_triplets(Path(file), arguments.limit)]
    with whole_weights():
        fdm = load_fdm(arguments.fdm)
        if fdm.adapter is None:
            raise RewindError(f"{arguments.fdm} is a bare base: train it on labelled data first (train_fdm.py)")
        vlm = fdm.backbone
        idm = None
        if arguments.idm is not None:
            idm = load_idm(arguments.idm, vlm if shares_base(arguments.idm, vlm) else None)
        actions = [triplet.action for triplet in triplets]
        rewards = load_rewards(arguments.rewards, idm, actions, arguments=arguments.reward_arguments)
    only_policy_trains(vlm)
    return fdm, idm, triplets, rewards


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
    check_options(config, arguments.rewards)
    check_trajectories(config, arguments.rollout_steps, arguments.rollout_credit, arguments.normalise_rewards)
    set_seed(config.seed)
    fdm, _, triplets, rewards = open_for_improvement(arguments)
    vlm = fdm.backbone
    fdm.check(temperature=config.temperature, guidance=arguments.guidance)
    validation = [triplet for file in arguments.validation for triplet in read_triplets(Path(file))]
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
        judge = load_idm(arguments.judge_idm) if arguments.judge_idm is not None else None
    inputs = [arguments.fdm, arguments.idm, arguments.judge_idm, *arguments.triplets, *arguments.validation]
    output = begin_run("train_grpo.py", arguments, config, inputs)
    early = [EarlyStoppingCallback(arguments.early_stop)] if arguments.early_stop else []
    if arguments.normalise_rewards:
        config.multi_objective_aggregation = "normalize_then_sum"
    warn_of_divided_groups(config, steps)
    monitors = Monitors(rules, output / "monitors.json", judge)
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
        monitors=monitors,
        store=CandidateStore(
            output / "candidates", scorer(arguments.idm, arguments.reward_arguments), scorers(rewards)
        ),
        callbacks=[MetricsFile(output / "metrics.jsonl"), *early],
    )
    fit(trainer, output, arguments.resume)
    monitors.check(output)
    folder = save_adapter(vlm, output)
    logger.warning("%d steps; the adapter is in %s", trainer.state.global_step, folder)
    return output
