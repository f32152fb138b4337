"""What `scripts/train_idm.py` and `scripts/train_fdm.py` do: triplets in, a run folder with an adapter out."""

from __future__ import annotations

import logging
import shutil
from copy import deepcopy
from dataclasses import asdict
from os import environ
from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import ModelConfig

from rl.data.importance import Importance
from rl.data.left_out import LeftOut
from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base
from rl.models.roles import IDM_ADAPTER, Role
from rl.models.unified import UnifiedVLM
from rl.running.run_folder import CONFIG_FILE
from trainers.common.adapters import add_adapter, lora_config, save_adapter
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile
from trainers.common.runs import begin_run, check_output, read_files
from trainers.common.sharding import on_main, whole_weights
from trainers.sft.arguments import FDMArguments, IDMArguments, RoleConfig
from trainers.sft.both_roles import BothRolesSFTTrainer, both_rows
from trainers.sft.rows import mixed, role_rows
from trainers.sft.trainer import RoleSFTTrainer

logger = logging.getLogger("rl")


def train_role(role: Role, arguments: IDMArguments, config: RoleConfig, model_config: ModelConfig) -> Path:
    """Train one role, or both (`with_idm`), on files of triplets; returns the run folder.

    `load_fdm` or `load_idm` opens it; with both, `load_idm` opens the folder `idm` in it.
    """
    with_idm = isinstance(arguments, FDMArguments) and arguments.with_idm
    synthetic = getattr(arguments, "synthetic", [])
    if not arguments.triplets:
        raise RewindError("give at least one file of triplets: --triplets data/triplets.json")
    check_output(config)
    if with_idm:
        check_both(arguments)
    lora, importance = lora_config(model_config, LINEAR_LAYERS), None
    if isinstance(arguments, FDMArguments) and arguments.token_weights:
        settings: Any = arguments.importance_normalise
        importance = Importance(settings, arguments.importance_floor, arguments.importance_cap)
    left_out: list[LeftOut] = []
    triplets = read_files(arguments, arguments.triplets, left_out, limit=arguments.limit, with_targets=True)
    labelled = len(triplets)
    triplets += read_files(arguments, synthetic, left_out, limit=arguments.limit, with_targets=True)
    set_seed(config.seed)  # before the adapter is drawn
    with whole_weights():
        vlm = load_base(arguments.base)
        rows = role_rows(vlm, role, triplets, importance)
        if isinstance(arguments, FDMArguments) and arguments.synthetic_share is not None:
            rows = mixed(rows, labelled, arguments.synthetic_share, config.seed)
        if with_idm:
            rows = both_rows(rows, role_rows(vlm, "idm", triplets))
        script = f"train_{role}.py"
        inputs = [arguments.base, *arguments.triplets, *synthetic]
        output = begin_run(script, arguments, config, inputs, left_out, model=asdict(model_config))
        add_adapter(vlm, lora)
        if with_idm:
            set_seed(config.seed)  # so that it is the adapter that `train_idm.py` would draw
            add_adapter(vlm, deepcopy(lora), IDM_ADAPTER)
    log, weighted = MetricsFile(output / "metrics.jsonl"), importance is not None
    trainer: RoleSFTTrainer
    if with_idm:
        trainer = BothRolesSFTTrainer(vlm, config, rows, use_weights=weighted, callbacks=[log])
    else:
        trainer = RoleSFTTrainer(vlm, role, config, rows, use_weights=weighted, callbacks=[log])
    fit(trainer, output, arguments.resume)
    folder = save_adapter(vlm, output)
    if with_idm:
        save_idm(vlm, output)
    logger.warning("%d triplets, %d steps; the adapter is in %s", len(triplets), trainer.state.global_step, folder)
    return output


def check_both(arguments: IDMArguments) -> None:
    """Raise a `RewindError` unless both roles can be trained at once."""
    if getattr(arguments, "synthetic", []):
        raise RewindError(
            "--with_idm trains both roles on the same labelled triplets, and an inverse model gave the labels of "
            "--synthetic: leave one of them out"
        )
    if environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise RewindError(
            "--with_idm does not run under DeepSpeed, which clips all gradients as one: use "
            "configs/accelerate/ddp.yaml, or train_fdm.py and train_idm.py one after the other"
        )


def save_idm(vlm: UnifiedVLM, output: Path) -> Path:
    """Write the inverse model's adapter as a run folder of its own in the forward model's; returns its path."""
    folder = output / "idm"
    save_adapter(vlm, folder, IDM_ADAPTER)
    on_main(lambda: shutil.copy(output / CONFIG_FILE, folder / CONFIG_FILE))
    logger.warning("the inverse model's run folder is %s", folder)
    return folder
