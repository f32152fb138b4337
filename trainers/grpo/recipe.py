"""What `scripts/train_grpo.py` does: a forward or inverse model and what to try in; an improved run folder out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import EarlyStoppingCallback, set_seed
from trl import GRPOConfig

from rewards import scorers
from rewards.loading import check_role_of_rewards
from rl.data.candidates.sentence_store import SentenceStore
from rl.data.candidates.store import CandidateStore, scorer_key
from rl.data.chains import chains
from rl.data.left_out import LeftOut
from rl.errors import RewindError
from rl.models.roles import InverseDynamics, Role
from rl.triplets import Triplet
from trainers.common.adapters import save_adapter
from trainers.common.candidates import make_few
from trainers.common.checkpoints import fit
from trainers.common.improvement import open_for_improvement, open_inverse_for_improvement
from trainers.common.metrics import MetricsFile
from trainers.common.preflight import at_least, check_training, check_validation
from trainers.common.runs import begin_run, check_output, read_files
from trainers.common.sharding import tell, whole_weights
from trainers.common.tokens import drop_own, use_cache
from trainers.grpo.advantages import Credit, groups_span
from trainers.grpo.arguments import GRPOArguments
from trainers.grpo.checks import OPTIONS, check_grpo, check_options, check_role_options, check_trajectories
from trainers.grpo.identity import check_correction
from trainers.grpo.judge import load_judge
from trainers.grpo.monitors import RULES, Monitors, rules_of
from trainers.grpo.profile import Profile
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.watches_sentences import SENTENCE_RULES, WatchesSentences

METRICS = (
    *("reward", "loss", "reward_std", "kl", "entropy", "frac_reward_zero_std"),
    *("completions/*", "rewards/*/mean", "rewards/*/std"),
)

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
    """Improve a forward or inverse model by rewards; returns the run folder, which `load_fdm` or `load_idm` opens."""
    role = _check_before_opening(arguments, config)
    set_seed(config.seed)
    left_out: list[LeftOut] = []
    steps, kind, credit = arguments.rollout_steps, arguments.importance_advantages, arguments.rollout_credit
    idm: InverseDynamics | None
    if role == "fdm":
        fdm, idm, triplets, rewards = open_for_improvement(arguments, left_out)
        vlm, near = fdm.backbone, fdm.backbone.same_below
        fdm.check(temperature=config.temperature, guidance=arguments.guidance)
    else:
        idm, triplets, rewards, near = open_inverse_for_improvement(arguments, left_out)
        vlm = idm.backbone
    files: dict[str, Any] = {} if role == "fdm" else {"with_targets": True, "named": False}
    validation = read_files(arguments, arguments.validation, left_out, **files)
    forward: dict[str, Any] = {"rollout_steps": steps, "importance_advantages": kind}
    check_grpo(
        config,
        chains(triplets, steps),
        chains(validation, steps),
        spread_floor=arguments.spread_floor,
        role=role,
        **forward,
    )
    with whole_weights():
        judge = load_judge(arguments.judge_idm, vlm, **arguments.opening()) if arguments.judge_idm is not None else None
    inputs = [arguments.fdm, arguments.idm, arguments.judge_idm, *arguments.triplets, *arguments.validation]
    output = begin_run("train_grpo.py", arguments, config, inputs, left_out, vlm=vlm, scorers=scorers(rewards))
    with whole_weights():
        backbones = [vlm, *(one.backbone for one in (idm, judge) if one is not None)]
        use_cache(arguments.token_cache, output, backbones, triplets, validation)
    early = [EarlyStoppingCallback(arguments.early_stop)] if arguments.early_stop else []
    if arguments.normalise_rewards:
        config.multi_objective_aggregation = "normalize_then_sum"
    warn_of_divided_groups(config, steps)
    monitors = _monitors(arguments, role, output, judge, triplets)
    profile = [Profile()] if arguments.profile else []
    for one in profile:
        rewards = one.timed(rewards)
    store = _store(arguments, role, output, scorers(rewards))
    trainer = WorldModelGRPOTrainer(
        vlm,
        triplets,
        rewards,
        config,
        validation=validation,
        dead_group_retries=arguments.dead_group_retries,
        spread_floor=arguments.spread_floor,
        guidance=arguments.guidance,
        draft=arguments.draft,
        rollout_credit=cast(Credit, credit),
        max_sampler_gap=arguments.max_sampler_gap,
        importance_correction=arguments.importance_correction,
        monitors=monitors,
        store=store,
        callbacks=[MetricsFile(output / "metrics.jsonl"), *early, *profile],
        role=role,
        max_sentence_tokens=arguments.max_sentence_tokens,
        **forward,
    )
    for one in profile:
        one.trainer = trainer
    fit(trainer, output, arguments.resume)
    monitors.check(output)
    vlm.same_below = near  # of an inverse model, not what the forward model beside it has brought
    folder = save_adapter(vlm, output, role=role)
    tell("%d steps; the adapter is in %s", trainer.state.global_step, folder)
    drop_own(output, arguments.token_cache, *backbones)
    make_few(store)
    return output


def _check_before_opening(arguments: GRPOArguments, config: GRPOConfig) -> Role:
    """Look at all that can be looked at before a model is loaded; returns the role.

    Raises:
        RewindError: in a sentence, what cannot be used and what to do.
    """
    check_output(config)
    if arguments.early_stop and not config.load_best_model_at_end:
        raise RewindError("--early_stop needs --load_best_model_at_end true --metric_for_best_model eval_reward")
    forward = ("guidance", "importance_advantages", "rollout_steps", "rollout_credit", "draft")
    check_role_options(
        arguments.role, arguments.max_sentence_tokens, **{name: getattr(arguments, name) for name in forward}
    )
    role = cast(Role, arguments.role)
    check_training(config, OPTIONS[role], arguments)
    at_least(0, early_stop=arguments.early_stop, dead_group_retries=arguments.dead_group_retries)
    check_validation(config, arguments.validation, METRICS)
    check_options(config, arguments.rewards, role)
    check_role_of_rewards(arguments.rewards, role)
    check_correction(arguments.max_sampler_gap, arguments.importance_correction)
    check_trajectories(config, arguments.rollout_steps, arguments.rollout_credit, arguments.normalise_rewards)
    return role


def _monitors(
    arguments: GRPOArguments, role: Role, output: Path, judge: InverseDynamics | None, triplets: Sequence[Triplet]
) -> Monitors:
    rules = rules_of(arguments.monitors, judge is not None, RULES if role == "fdm" else SENTENCE_RULES)
    watches = None if role == "fdm" else WatchesSentences(triplets, output / "start_sentences.json")
    return Monitors(rules, output / "monitors.json", judge, watches)


def _store(
    arguments: GRPOArguments, role: Role, output: Path, scored_by: dict[str, str]
) -> CandidateStore | SentenceStore:
    if role == "fdm":
        return CandidateStore(output / "candidates", scorer_key(arguments.idm, arguments.reward_arguments), scored_by)
    return SentenceStore(output / "sentences", scorer_key(arguments.fdm, arguments.reward_arguments), scored_by)
