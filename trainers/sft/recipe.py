"""What `scripts/train_idm.py` and `scripts/train_fdm.py` do: triplets in, a run folder with an adapter out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from os import environ
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed

from rl.data.action_vectors import ranges_of
from rl.data.importance import Importance
from rl.data.left_out import LeftOut
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import pairs_of
from rl.data.triplet_table import without_outcomes
from rl.errors import RewindError
from rl.models.changes import PAIRS, calibrated
from rl.models.fast import FastCodec
from rl.models.hub import folder_of
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base
from rl.models.roles import IDM_ADAPTER, Role
from rl.models.run_role import Kind
from rl.models.settings import Settings
from rl.models.unified import UnifiedVLM
from rl.running.run_folder import CONFIG_FILE
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter, check_whole, lora_config, save_adapter, save_whole
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile
from trainers.common.preflight import at_least, check_training, check_validation
from trainers.common.refusals import MODEL, SFT, refuse_ignored
from trainers.common.runs import begin_run, check_output, read_files
from trainers.common.sharding import on_main, stage_asked_for, tell, whole_weights
from trainers.common.tokens import OWN, drop_own, encoded
from trainers.common.validation import GRID_ROWS
from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleArguments, RoleConfig
from trainers.sft.both_roles import BothRolesSFTTrainer, both_rows, check_one_best
from trainers.sft.rows import check_mixed, mixed, role_rows
from trainers.sft.trainer import METRICS, RoleSFTTrainer


def train_role(role: Role, arguments: RoleArguments, config: RoleConfig, model_config: LoraModelConfig) -> Path:
    """Train one role, or both (`with_idm`), on files of triplets; returns the run folder.

    `load_fdm` or `load_idm` opens it; with both, `load_idm` opens the folder `idm` in it. Without LoRA (`use_peft`) all
    weights of the language model are trained, and the run holds a model of its own.
    """
    with_idm = isinstance(arguments, FDMArguments) and arguments.with_idm
    synthetic = getattr(arguments, "synthetic", [])
    _check(arguments, config, model_config, with_idm)
    codec = None if arguments.action_codec is None else FastCodec.open(folder_of(arguments.action_codec))
    lora, importance = lora_config(model_config, LINEAR_LAYERS) if model_config.use_peft else None, None
    if isinstance(arguments, FDMArguments) and arguments.token_weights:
        normalise: Any = arguments.importance_normalise
        importance = Importance(normalise, arguments.importance_floor, arguments.importance_cap)
    left_out: list[LeftOut] = []
    triplets = read_files(arguments, arguments.triplets, left_out, limit=arguments.limit, with_targets=True)
    labelled = len(triplets)
    triplets += read_files(arguments, synthetic, left_out, limit=arguments.limit, with_targets=True)
    held_out = read_files(arguments, arguments.validation, left_out, with_targets=True)
    proposes = getattr(arguments, "propose", False)
    if proposes:
        triplets, held_out = without_outcomes(triplets), without_outcomes(held_out)
    actions = ranges_of(triplets, arguments.action_ranges)
    if actions is None and codec is not None:
        raise RewindError("--action_codec is for actions that are vectors, and these are words: leave it out")
    set_seed(config.seed)  # before the adapter is drawn
    with whole_weights():
        vlm = load_base(arguments.base, _opening(arguments, model_config), arguments.vq)
        vlm.max_rows = arguments.max_rows
        if actions is not None:
            vlm.use_actions(actions, codec)
        vlm.check_actions(triplet.action for part in (triplets, held_out) for triplet in part)
        share = getattr(arguments, "synthetic_share", None)
        if share is not None:
            check_mixed(len(triplets), labelled, share)
        if lora is not None:
            add_adapter(vlm, lora)
        if lora is not None and with_idm:
            set_seed(config.seed)  # so that it is the adapter that `train_idm.py` would draw
            add_adapter(vlm, deepcopy(lora), IDM_ADAPTER)
        inputs = [arguments.base, *arguments.triplets, *synthetic, *arguments.validation]
        about: Any = {"vlm": vlm, "model": asdict(model_config)}
        output = begin_run(f"train_{role}.py", arguments, config, inputs, left_out, **about)
        kept = arguments.token_cache or output / OWN
        cache = encoded(vlm, kept, triplets, held_out, distances=importance is not None, own=not arguments.token_cache)
        if isinstance(arguments, FDMArguments):
            vlm.same_below = _same_below(arguments, vlm, cache, triplets[:labelled])
        mix = None if share is None else (labelled, share, config.seed)
        rows = _rows(vlm, role, triplets, importance, cache, with_idm, mix)
        eval_rows = _rows(vlm, role, held_out, importance, cache, with_idm) if held_out else None
    if lora is None and vlm.head_weight().dtype != torch.float32 and not stage_asked_for():
        tell(
            "weights in half precision lose small steps: --dtype float32 --bf16 true keeps them, or a DeepSpeed config"
        )
    settings: Any = {
        "eval_dataset": eval_rows,
        "shown": held_out[:GRID_ROWS],
        "use_weights": importance is not None,
        "callbacks": [MetricsFile(output / "metrics.jsonl")],
    }
    trainer: RoleSFTTrainer
    if with_idm:
        trainer = BothRolesSFTTrainer(vlm, config, rows, **settings)
    else:
        trainer = RoleSFTTrainer(vlm, role, config, rows, **settings)
    fit(trainer, output, arguments.resume)
    kind: Kind = "proposer" if proposes else role
    folder = save_whole(vlm, output, role=kind) if lora is None else save_adapter(vlm, output, role=kind)
    if with_idm:
        save_idm(vlm, output)
    what = "model" if lora is None else "adapter"
    tell("%d triplets, %d steps; the %s is in %s", len(triplets), trainer.state.global_step, what, folder)
    drop_own(output, arguments.token_cache, vlm)
    return output


def _check(arguments: RoleArguments, config: RoleConfig, model_config: LoraModelConfig, with_idm: bool) -> None:
    """What can be said of the arguments by themselves, before anything is opened."""
    if not arguments.triplets:
        raise RewindError("give at least one file of triplets: --triplets data/triplets.json")
    check_output(config)
    check_training(config, SFT, arguments)
    check_validation(config, arguments.validation, METRICS)
    refuse_ignored(model_config, MODEL)
    at_least(0, same_below=getattr(arguments, "same_below", None) or 0.0)
    _opening(arguments, model_config)
    if not model_config.use_peft:
        check_whole(model_config, LoraModelConfig())
        if with_idm:
            raise RewindError(
                "--with_idm puts both roles as adapters on one backbone: leave --use_peft true, or train_fdm.py and "
                "train_idm.py one after the other"
            )
    if with_idm:
        check_both(arguments, config)


def _rows(
    vlm: UnifiedVLM,
    role: Role,
    triplets: Sequence[Triplet],
    importance: Importance | None,
    cache: TokenCache,
    with_idm: bool,
    mix: tuple[int, float, int] | None = None,
) -> Dataset:
    """What the trainer reads: the rows of a role or of both, labelled and synthetic ones mixed."""
    rows = role_rows(vlm, role, triplets, importance, cache=cache)
    if mix is not None:
        rows = mixed(rows, *mix)
    return both_rows(rows, role_rows(vlm, "idm", triplets, cache=cache)) if with_idm else rows


def _same_below(arguments: FDMArguments, vlm: UnifiedVLM, cache: TokenCache, labelled: Sequence[Triplet]) -> float:
    """How near two tokens show the same, as it was given or as labelled pairs tell."""
    if arguments.same_below is not None:
        return arguments.same_below
    first = labelled[:PAIRS]
    pairs = [(triplet.source, triplet.target) for triplet in first if triplet.target is not None]
    keys = [pair.key or b"" for pair in pairs_of(vlm, cache, first)]
    found = cache.remembered(
        "same_below", keys, lambda: calibrated(vlm, [source for source, _ in pairs], [target for _, target in pairs])
    )
    return found


def _opening(arguments: RoleArguments, model_config: LoraModelConfig) -> Settings:
    """How the base is opened; raises a `RewindError` for settings that there are not."""
    return replace(model_config.settings(), image_size=arguments.image_size)


def check_both(arguments: RoleArguments, config: RoleConfig) -> None:
    """Raise a `RewindError` unless both roles can be trained at once."""
    check_one_best(config)
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
    save_adapter(vlm, folder, IDM_ADAPTER, role="idm")
    on_main(lambda: shutil.copy(output / CONFIG_FILE, folder / CONFIG_FILE))
    tell("the inverse model's run folder is %s", folder)
    return folder
