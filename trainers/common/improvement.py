"""What every method that improves a forward model by rewards opens first."""

from __future__ import annotations

from rewards import Reward, load_rewards
from rl.data.left_out import LeftOut
from rl.errors import RewindError
from rl.models.opening import load_fdm, load_idm_beside
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.running.data_flags import check_data_flags
from rl.triplets import Triplet, columns_of
from trainers.common.adapters import only_policy_trains
from trainers.common.arguments import ImproveArguments
from trainers.common.runs import read_files
from trainers.common.sharding import whole_weights


def open_for_improvement(
    arguments: ImproveArguments, left_out: list[LeftOut], triplets: list[Triplet] | None = None
) -> tuple[ForwardDynamics, InverseDynamics | None, list[Triplet], list[Reward]]:
    """The forward model with its adapter alone trainable, the inverse model, what to try, and the rewards.

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
        if fdm.adapter is None:
            raise RewindError(f"{arguments.fdm} is a bare base: train it on labelled data first (train_fdm.py)")
        vlm = fdm.backbone
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
