"""What a GRPO run is refused for before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, lcm
from typing import Any

from trl import GRPOConfig

from rewards import Reward
from rewards.table import weight_of
from rl.checks import check_whole
from rl.errors import RewindError
from rl.models.roles import Role
from rl.models.saying import USUAL_TOKENS
from rl.triplets import Triplet
from trainers.common.preflight import above_zero, at_least
from trainers.common.refusals import GRPO, GRPO_OF_SENTENCES, refuse_ignored
from trainers.grpo.advantages import CREDITS, AdvantageWeights

OPTIONS = {"fdm": GRPO, "idm": GRPO_OF_SENTENCES}
"""Which of TRL's options each role honours."""
_KINDS = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
"""What TRL 1.16 knows; of some it finds out only in the first loss."""


def check_options(args: GRPOConfig, rewards: Sequence[str] = (), role: Role = "fdm") -> None:
    """Check TRL's options that mean nothing here or go wrong; nothing needs to be loaded for it.

    Args:
        args: TRL's options.
        rewards: as on the command line, NAME_OR_PATH[=WEIGHT], if there are any to be held against `reward_weights`.
        role: what is trained.

    Raises:
        RewindError: in a sentence, what cannot be used and what to do.
    """
    refuse_ignored(args, OPTIONS[role])
    above_zero(temperature=args.temperature)
    at_least(1, num_iterations=args.num_iterations, num_generations_eval=args.num_generations_eval)
    at_least(0, beta=args.beta, epsilon=args.epsilon, epsilon_high=args.epsilon_high)
    for name, known in _KINDS.items():
        if getattr(args, name) not in known:
            raise RewindError(f"--{name} is one of {', '.join(known)}, not '{getattr(args, name)}'")
    if not 0 < args.top_entropy_quantile <= 1:
        raise RewindError(f"--top_entropy_quantile must lie above 0 and up to 1, not be {args.top_entropy_quantile:g}")
    if args.reward_weights is None or not rewards:
        return
    check_weights(args.reward_weights, [weight_of(item)[0] for item in rewards])
    twice = [item for item in rewards if weight_of(item)[1] is not None]
    if twice:
        raise RewindError(
            f"the weight of '{twice[0]}' would be given twice: write weights behind '=' in --rewards, or leave them "
            "out there and give all in --reward_weights"
        )


def check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    """Raise a `RewindError` unless there is one weight a reward, each a number."""
    if len(weights) != len(names):
        raise RewindError(
            f"--reward_weights has {len(weights)} numbers and there are {len(names)} rewards ({', '.join(names)}): "
            "give one for each, in their order"
        )
    for weight, name in zip(weights, names, strict=True):
        if not isfinite(weight):
            raise RewindError(f"the weight of the reward '{name}' must be a number, not {weight}")


def weighted(rewards: Sequence[Reward], weights: Sequence[float] | None) -> list[Reward]:
    """The rewards with TRL's `reward_weights` in the place of their own, if those are given.

    Raises:
        RewindError: another number of weights than of rewards.
    """
    if weights is None:
        return list(rewards)
    check_weights(weights, [reward.name for reward in rewards])
    return [replace(reward, weight=float(weight)) for reward, weight in zip(rewards, weights, strict=True)]


def check_role_options(role: str, max_sentence_tokens: int, **forward: Any) -> None:
    """Check that a role is given no option of the other one.

    Args:
        role: what is trained.
        max_sentence_tokens: the inverse role's.
        forward: options of the forward role, by their flags' names.

    Raises:
        RewindError: another role than there are, or an option that this one would ignore.
    """
    if role not in OPTIONS:
        raise RewindError(f"--role is fdm or idm, not '{role}'")
    check_whole("max_sentence_tokens", max_sentence_tokens, least=1)
    if role == "fdm" and max_sentence_tokens != USUAL_TOKENS:
        raise RewindError("--max_sentence_tokens is of --role idm: a picture has as many tokens as the base's have")
    for name, value in forward.items():
        if role == "idm" and value != _OF_THE_FORWARD_ROLE[name][0]:
            raise RewindError(f"--{name} {value} is not used with --role idm: {_OF_THE_FORWARD_ROLE[name][1]}")


_OF_THE_FORWARD_ROLE: dict[str, tuple[Any, str]] = {
    "guidance": (1.0, "an inverse model's prompt has no words that could be left out"),
    "importance_advantages": ("none", "a word is no token of a picture that changes or stays (fdm_likelihood has "
        "the argument 'changed')"),
    "draft": (False, "a sentence has no source to guess its words from"),
    "rollout_steps": (1, "a sentence is about one pair of pictures"),
    "rollout_credit": ("reward_to_go", "a sentence is about one pair of pictures"),
}  # fmt: skip
"""The value that means nothing was asked for, and what is said of another."""


def check_grpo(
    args: GRPOConfig,
    chains: Sequence[Sequence[Triplet]],
    validation: Sequence[Sequence[Triplet]],
    *,
    rollout_steps: int = 1,
    spread_floor: float | None = None,
    importance_advantages: AdvantageWeights = "none",
    role: Role = "fdm",
) -> None:
    """Check settings against one another and against what there is to train and to evaluate on.

    Raises:
        RewindError: in a sentence, what does not go together and what to do.
    """
    check_options(args, role=role)
    if role == "idm" and any(t.target is None for chain in (*chains, *validation) for t in chain):
        raise RewindError("a sentence of the inverse role is about two pictures: a pair lacks its target ('output')")
    what = "source and action" if role == "fdm" else "pair of pictures"
    if not chains:
        raise RewindError(
            f"there is no {what} to train on"
            if rollout_steps == 1
            else f"no {rollout_steps} triplets follow one another, each starting from the very picture that the one "
            "before ended in: give such, e.g. pairs mined from one video, or a lower --rollout_steps"
        )
    needed = args.generation_batch_size // (args.num_generations * rollout_steps)
    if len(chains) < needed:
        there_are = f"{len(chains)} {'sources and actions' if role == 'fdm' else 'pairs of pictures'}"
        if rollout_steps > 1:
            there_are = f"{len(chains)} chains of {rollout_steps} actions"
        raise RewindError(
            f"a step draws {needed} groups and there are {there_are}: give more, or lower --per_device_train_batch_size"
        )
    _check_checkpoints(args)
    above_zero(spread_floor=spread_floor)
    if spread_floor is not None and args.scale_rewards not in ("none", False):
        raise RewindError("--spread_floor takes the place of --scale_rewards: leave that 'none'")
    if importance_advantages == "target" and any(t.target is None for chain in chains for t in chain):
        raise RewindError("--importance_advantages target needs the true target of every source: use 'group'")
    evaluated = "sources and actions" if role == "fdm" else "pairs of pictures"
    if (args.eval_strategy != "no") != bool(validation):
        raise RewindError(
            f"evaluation while training needs both {evaluated} to evaluate on (--validation"
            f"{f', chains of {rollout_steps}' if rollout_steps > 1 else ''}) and --eval_strategy steps"
        )


def _check_checkpoints(args: GRPOConfig) -> None:
    # In optimizer steps, of which each takes some of the passes that a rollout serves.
    cycle = lcm(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
    cycle //= args.gradient_accumulation_steps
    if cycle > 1 and args.save_strategy not in ("no", "steps"):
        raise RewindError(
            f"a rollout serves {cycle} optimizer steps and a checkpoint can only stand at its end: use "
            f"--save_strategy steps with a multiple of {cycle}, not '{args.save_strategy.value}'"
        )
    if args.save_strategy == "steps" and args.save_steps % cycle:
        raise RewindError(
            f"a rollout serves {cycle} optimizer steps and a checkpoint can only stand at its end: make "
            f"--save_steps a multiple of {cycle}, not {args.save_steps:g}"
        )
    if args.save_strategy != "no" and args.max_steps > 0 and args.max_steps % cycle:
        raise RewindError(
            f"a rollout serves {cycle} optimizer steps and the last checkpoint can only stand at its end: make "
            f"--max_steps a multiple of {cycle}, not {args.max_steps}"
        )


def check_trajectories(args: GRPOConfig, steps: int, credit: str, normalised: bool = False) -> None:
    """Batch sizes count predictions, of which a group of trajectories has `num_generations` times `steps`.

    Raises:
        RewindError: sizes that do not divide, or a setting that only one step has.
    """
    if credit not in CREDITS:
        raise RewindError(f"--rollout_credit is one of {', '.join(CREDITS)}, not '{credit}'")
    if steps < 1:
        raise RewindError(f"--rollout_steps must be at least 1, not {steps}")
    if steps == 1:
        return
    if args.scale_rewards not in ("none", False):
        raise RewindError(
            f"--rollout_steps {steps} computes advantages by step: leave --scale_rewards 'none', or use --spread_floor"
        )
    if normalised or args.multi_objective_aggregation != "sum_then_normalize":
        raise RewindError(
            f"--rollout_steps {steps} sums a step's rewards as they are: leave --normalise_rewards false and choose "
            "the weights"
        )
    sizes = [
        ("train", args.per_device_train_batch_size * args.steps_per_generation, args.num_generations),
        ("eval", args.per_device_eval_batch_size, args.num_generations_eval or args.num_generations),
    ]
    for name, drawn, trajectories in sizes if args.eval_strategy != "no" else sizes[:1]:
        whole, everyone = trajectories * steps, drawn * args.world_size
        if everyone % whole or drawn % steps:
            where = f" in each of {args.world_size} processes" if args.world_size > 1 else ""
            raise RewindError(
                f"{drawn} predictions{where} do not divide into groups of {trajectories} trajectories of {steps} "
                f"steps: make all of them together a multiple of {whole}, and those of a process one of {steps} "
                f"(--per_device_{name}_batch_size)"
            )
