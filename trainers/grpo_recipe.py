"""What `scripts/train_grpo.py` does: a forward model and things to try in; an improved run folder out."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path

from transformers import set_seed
from trl import GRPOConfig

from rewards import Reward, load_rewards
from rl.api import FDM_ADAPTER, load_fdm, load_idm, shares_base
from rl.data.triplets_io import read_triplets
from rl.errors import RewindError
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.run_folder import claim
from rl.triplets import Triplet
from rl.unified import UnifiedVLM
from trainers.arguments import GRPOArguments, ImproveArguments, settings_of
from trainers.grpo import WorldModelGRPOTrainer
from trainers.pretraining import MetricsFile, check_finite, last_checkpoint, require_one_process
from trainers.sft import save_adapter

logger = logging.getLogger("rl")


def only_policy_trains(vlm: UnifiedVLM, adapter: str = FDM_ADAPTER) -> None:
    """Make the policy's adapter the active and only trainable one."""
    vlm.model.set_adapter(adapter)  # type: ignore[operator]
    for name, parameter in vlm.model.named_parameters():
        parameter.requires_grad_(f".{adapter}." in name)


def open_for_improvement(
    arguments: ImproveArguments,
) -> tuple[ForwardDynamics, InverseDynamics | None, list[Triplet], list[Reward]]:
    """The forward model with its adapter alone trainable, the inverse model, what to try, and the rewards.

    Raises:
        RewindError: a missing argument, a bare base, a reward that cannot be loaded.
    """
    if arguments.fdm is None or not arguments.triplets:
        raise RewindError("give the model to improve and what to try: --fdm runs/fdm --triplets data/triplets.json")
    triplets = [triplet for file in arguments.triplets for triplet in read_triplets(Path(file), arguments.limit)]
    fdm = load_fdm(arguments.fdm)
    if fdm.adapter is None:
        raise RewindError(f"{arguments.fdm} is a bare base: train it on labelled data first (train_fdm.py)")
    vlm = fdm.backbone
    idm = None
    if arguments.idm is not None:
        idm = load_idm(arguments.idm, vlm if shares_base(arguments.idm, vlm) else None)
    rewards = load_rewards(arguments.rewards, idm, [triplet.action for triplet in triplets])
    only_policy_trains(vlm)
    return fdm, idm, triplets, rewards


def train_grpo(arguments: GRPOArguments, config: GRPOConfig) -> Path:
    """Improve a forward model by rewards; returns the run folder, which `load_fdm` opens."""
    require_one_process("train_grpo.py")
    if config.output_dir is None:
        raise RewindError("give a folder for the run: --output_dir runs/my-run")
    set_seed(config.seed)
    fdm, _, triplets, rewards = open_for_improvement(arguments)
    vlm = fdm.backbone
    validation = [triplet for file in arguments.validation for triplet in read_triplets(Path(file))]
    output = claim(
        Path(config.output_dir),
        "train_grpo.py",
        {**asdict(arguments), "training": settings_of(config)},
        inputs=[arguments.fdm, arguments.idm, *arguments.triplets, *arguments.validation],
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    trainer = WorldModelGRPOTrainer(
        vlm,
        triplets,
        rewards,
        config,
        validation=validation,
        callbacks=[MetricsFile(output / "metrics.jsonl")],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output) if arguments.resume else None)
    check_finite(trainer.model, output)
    folder = save_adapter(vlm, output)
    logger.warning("%d steps; the adapter is in %s", trainer.state.global_step, folder)
    return output
