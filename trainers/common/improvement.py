"""What every method that improves a forward model by rewards opens first."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig

from rewards import Reward, load_rewards
from rl.data.left_out import LeftOut
from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_fdm, load_idm_beside
from rl.models.roles import FDM_ADAPTER, ForwardDynamics, InverseDynamics
from rl.models.run_role import role_of
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
    check_data_flags(arguments.image_root, arguments.strict, arguments.triplets)
    if not triplets:
        triplets = read_files(arguments, arguments.triplets, left_out, limit=arguments.limit)
    with whole_weights():
        fdm = load_fdm(arguments.fdm, **arguments.opening())
        vlm = fdm.backbone
        if fdm.adapter is None:
            if role_of(arguments.fdm) is None:
                raise RewindError(f"{arguments.fdm} is a bare base: train it on labelled data first (train_fdm.py)")
            add_adapter(vlm, fresh_adapter())
            fdm = ForwardDynamics(vlm, FDM_ADAPTER)
            tell("%s has no adapter, so it gets a fresh one to learn with (rank %d)", arguments.fdm, FRESH_RANK)
        idm = None
        if arguments.idm is not None:
            idm = load_idm_beside(arguments.idm, vlm, **arguments.opening())
        actions = [triplet.action for triplet in triplets]
        for backbone in (vlm, vlm if idm is None else idm.backbone):
            backbone.check_actions(actions)
        columns, told = columns_of(triplets), arguments.reward_arguments
        rewards = load_rewards(arguments.rewards, idm, actions, columns=columns, arguments=told)
    only_policy_trains(vlm)
    return fdm, idm, triplets, rewards
