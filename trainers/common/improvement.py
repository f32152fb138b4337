"""What every method that improves a forward model by rewards opens first."""

from __future__ import annotations

from pathlib import Path

from rewards import Reward, load_rewards
from rl.data.triplet_files import read_triplets
from rl.errors import RewindError
from rl.models.opening import load_fdm, load_idm, shares_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet, columns_of
from trainers.common.adapters import only_policy_trains
from trainers.common.arguments import ImproveArguments
from trainers.common.sharding import whole_weights


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
        columns, told = columns_of(triplets), arguments.reward_arguments
        rewards = load_rewards(arguments.rewards, idm, actions, columns=columns, arguments=told)
    only_policy_trains(vlm)
    return fdm, idm, triplets, rewards
