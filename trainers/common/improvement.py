"""What every method that improves a model by rewards opens first: a forward model, or (GRPO) an inverse one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig

from rewards import Reward, load_rewards
from rl.data.left_out import LeftOut
from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_fdm, load_fdm_beside, load_idm, load_idm_beside
from rl.models.roles import (
    FDM_ADAPTER,
    JUDGING_FDM_ADAPTER,
    POLICY_ADAPTER,
    ForwardDynamics,
    InverseDynamics,
)
from rl.models.run_role import role_of
from rl.models.unified import UnifiedVLM
from rl.running.data_flags import check_data_flags
from rl.triplets import Triplet, columns_of
from trainers.common.adapters import add_adapter, only_policy_trains
from trainers.common.arguments import ImproveArguments
from trainers.common.runs import read_files
from trainers.common.sharding import tell, whole_weights

FRESH_RANK = 16
"""Of the adapter with which a model without one goes on: of a run that trained all weights, or one that was merged."""


def fresh_adapter() -> LoraConfig:
    """It changes nothing before it is trained, and has no dropout, as no policy has."""
    return LoraConfig(
        r=FRESH_RANK, lora_alpha=2 * FRESH_RANK, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM"
    )


def open_for_improvement(
    arguments: ImproveArguments, left_out: list[LeftOut], triplets: Sequence[Triplet] | None = None
) -> tuple[ForwardDynamics, InverseDynamics | None, Sequence[Triplet], list[Reward]]:
    """The forward model with its adapter alone trainable, the inverse model, what to try, and the rewards.

    A trained model without an adapter (all its weights were trained, or it was exported) gets a fresh one.

    `triplets` are tried in place of those that the arguments name, of which those that are left out are added to
    `left_out`.

    Raises:
        RewindError: a missing argument, a bare base, a reward that cannot be loaded.
    """
    if arguments.fdm is None or not (triplets or arguments.triplets):
        raise RewindError("give the model to improve and what to try: --fdm runs/fdm --triplets data/triplets.json")
    check_data_flags(arguments, arguments.triplets)
    if not triplets:
        triplets = read_files(arguments, arguments.triplets, left_out, limit=arguments.limit)
    with whole_weights():
        fdm = load_fdm(arguments.fdm, **arguments.opening())
        vlm = fdm.backbone
        if fdm.adapter is None:
            _give_adapter(vlm, arguments.fdm, "train_fdm.py")
            fdm = ForwardDynamics(vlm, FDM_ADAPTER)
        idm = None
        if arguments.idm is not None:
            idm = load_idm_beside(arguments.idm, vlm, **arguments.opening())
        actions = [triplet.action for triplet in triplets]
        vlm.check_actions(actions)
        if idm is not None:
            idm.backbone.check_named(actions)
        columns, told = columns_of(triplets), arguments.reward_arguments
        rewards = load_rewards(arguments.rewards, idm, actions, columns=columns, arguments=told)
    only_policy_trains(vlm)
    return fdm, idm, triplets, rewards


def open_inverse_for_improvement(
    arguments: ImproveArguments, left_out: list[LeftOut]
) -> tuple[InverseDynamics, Sequence[Triplet], list[Reward], float]:
    """The inverse model with its adapter alone trainable, pairs to try, and the rewards, which ask the forward model.

    That one is frozen: another adapter on the same weights, or a model of its own. Pairs may lack words; where they
    have some, those are among the sentences that rivals are taken from. How near two tokens show the same stays what
    the forward model's data told; `InverseDynamics.backbone` is saved by the caller.

    Raises:
        RewindError: a missing argument, a bare base, a pair without a second picture, a reward that cannot be loaded.
    """
    if arguments.idm is None or not arguments.triplets:
        raise RewindError(
            "give the inverse model to improve and pairs to try: --role idm --idm runs/idm --fdm runs/fdm --triplets "
            "runs/pairs/pairs.json"
        )
    check_data_flags(arguments, arguments.triplets)
    files: dict[str, Any] = {"limit": arguments.limit, "with_targets": True, "named": False}
    pairs = read_files(arguments, arguments.triplets, left_out, **files)
    with whole_weights():
        idm = load_idm(arguments.idm, adapter=POLICY_ADAPTER, **arguments.opening())
        vlm = idm.backbone
        if idm.adapter is None:
            _give_adapter(vlm, arguments.idm, "train_idm.py")
            idm = InverseDynamics(vlm, POLICY_ADAPTER)
        near, fdm = vlm.same_below, None
        if arguments.fdm is not None:
            fdm = load_fdm_beside(arguments.fdm, vlm, JUDGING_FDM_ADAPTER, **arguments.opening())
        actions = [pair.action for pair in pairs if pair.action]
        for backbone in (vlm, vlm if fdm is None else fdm.backbone):
            backbone.check_actions(actions)
        columns, told = columns_of(pairs), arguments.reward_arguments
        rewards = load_rewards(arguments.rewards, None, actions, columns=columns, arguments=told, fdm=fdm, role="idm")
    only_policy_trains(vlm)
    return idm, pairs, rewards, near


def _give_adapter(vlm: UnifiedVLM, run: str, script: str) -> None:
    """A fresh adapter for a run that has none of its own.

    Raises:
        RewindError: a bare base.
    """
    if role_of(run) is None:
        raise RewindError(f"{run} is a bare base: train it on labelled data first ({script})")
    add_adapter(vlm, fresh_adapter())
    tell("%s has no adapter, so it gets a fresh one to learn with (rank %d)", run, FRESH_RANK)
