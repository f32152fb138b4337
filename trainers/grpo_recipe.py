"""What `scripts/train_grpo.py` does: a forward model and things to try in; an improved run folder out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed
from trl import GRPOConfig

from rewards import Reward, load_rewards
from rl.api import FDM_ADAPTER, load_fdm, load_idm, shares_base
from rl.data.store import CandidateStore, scorer
from rl.data.triplets_io import read_triplets
from rl.errors import RewindError
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet
from rl.unified import UnifiedVLM
from trainers.arguments import GRPOArguments, ImproveArguments
from trainers.checkpoints import fit
from trainers.grpo import WorldModelGRPOTrainer
from trainers.grpo_checks import check_trajectories
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


def train_grpo(arguments: GRPOArguments, config: GRPOConfig) -> Path:
    """Improve a forward model by rewards; returns the run folder, which `load_fdm` opens."""
    check_output(config)
    if arguments.early_stop and not config.load_best_model_at_end:
        raise RewindError("--early_stop needs --load_best_model_at_end true --metric_for_best_model eval_reward")
    check_trajectories(config, arguments.rollout_steps, arguments.rollout_credit, arguments.normalise_rewards)
    set_seed(config.seed)
    fdm, _, triplets, rewards = open_for_improvement(arguments)
    vlm = fdm.backbone
    fdm.check(temperature=config.temperature, guidance=arguments.guidance)
    validation = [triplet for file in arguments.validation for triplet in read_triplets(Path(file))]
    rules = rules_of(arguments.monitors, arguments.judge_idm is not None)
    with whole_weights():
        judge = load_idm(arguments.judge_idm) if arguments.judge_idm is not None else None
    inputs = [arguments.fdm, arguments.idm, arguments.judge_idm, *arguments.triplets, *arguments.validation]
    output = begin_run("train_grpo.py", arguments, config, inputs)
    kind: Any = arguments.importance_advantages
    credit: Any = arguments.rollout_credit
    early = [EarlyStoppingCallback(arguments.early_stop)] if arguments.early_stop else []
    if arguments.normalise_rewards:
        config.multi_objective_aggregation = "normalize_then_sum"
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
        rollout_steps=arguments.rollout_steps,
        rollout_credit=credit,
        monitors=monitors,
        store=CandidateStore(output / "candidates", scorer(arguments.idm, arguments.reward_arguments)),
        callbacks=[MetricsFile(output / "metrics.jsonl"), *early],
    )
    fit(trainer, output, arguments.resume)
    monitors.check(output)
    folder = save_adapter(vlm, output)
    logger.warning("%d steps; the adapter is in %s", trainer.state.global_step, folder)
    return output
