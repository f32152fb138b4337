"""What a role trains, as all methods use it: a LoRA adapter, made, the only one that trains, saved; or all weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from trl import ModelConfig, get_peft_config

from rl.errors import RewindError
from rl.models.adapters import DIGESTS_FILE, quiet_peft, told_of_base
from rl.models.bases import lasting_name
from rl.models.cards import learned
from rl.models.known import CARD_FILE, WHOLE
from rl.models.lora import add_in_place
from rl.models.roles import FDM_ADAPTER
from rl.models.run_role import Kind
from rl.models.saving import save_base
from rl.models.unified import UnifiedVLM
from rl.running.files import read_json, whole_folder
from rl.running.seals import seal
from trainers.common.preflight import above_zero, at_least
from trainers.common.sharding import gathered_adapter, on_main


def add_adapter(vlm: UnifiedVLM, config: LoraConfig, name: str = "default") -> None:
    """Put a fresh LoRA adapter on a backbone and make it the trainable one; its config names the base.

    Raises:
        RewindError: the head among the targets, which sampling reads as a plain matrix; targets that are not there.
    """
    _check_targets(config)
    model: Any = vlm.model
    try:
        if hasattr(model, "peft_config"):
            model.add_adapter(name, config)
            model.set_adapter(name)
        else:
            with quiet_peft():
                model = vlm.model = get_peft_model(model, config, adapter_name=name)
    except (ValueError, TypeError) as error:  # peft, of targets that are not there or are no linear layers
        said = " ".join(str(error).split())[:200]
        raise RewindError(f"no LoRA of this kind fits {vlm.name} (--lora_target_modules, --lora_r): {said}") from error
    add_in_place(model)
    # peft puts the in-memory model's own name there.
    model.peft_config[name].base_model_name_or_path = lasting_name(vlm.name)


def check_whole(model_config: ModelConfig, default: ModelConfig) -> None:
    """Raise a `RewindError` for what belongs to an adapter or to frozen weights, where all weights are trained."""
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_config, name):
            raise RewindError(f"--use_peft false trains all weights, and --{name} freezes them: leave one of them out")
    for one in fields(model_config):
        adapters = one.name.startswith("lora_") or one.name in ("use_rslora", "use_dora")
        if adapters and getattr(model_config, one.name) != getattr(default, one.name):
            raise RewindError(f"--use_peft false trains all weights and no adapter: leave --{one.name} out")


def _check_targets(config: LoraConfig) -> None:
    targets = config.target_modules
    if config.modules_to_save or (isinstance(targets, list | set) and "lm_head" in targets):
        raise RewindError("the head stays frozen, since both roles share it: leave lm_head and modules_to_save out")


def save_adapter(vlm: UnifiedVLM, run: Path, name: str = "default", *, role: Kind | None = None) -> Path:
    """Write an adapter to `run/adapter` in safetensors, whatever its name on the backbone; returns the folder.

    `role` is written beside the weights, so that a copy of the folder is not opened as the other role; so are the
    base's fingerprint, the picture size that was asked for and the image tokenizer that was named. Every process must
    call it; the main one writes.
    """
    folder = run / "adapter"
    with gathered_adapter(vlm.model):
        on_main(lambda: _write_adapter(vlm, folder, name, role))
    return folder


def _write_adapter(vlm: UnifiedVLM, folder: Path, name: str, role: Kind | None) -> None:
    model: Any = vlm.model
    with whole_folder(folder, last="adapter_config.json") as beside:  # which says that there is an adapter
        card = {**({} if role is None else {"role": role}), **told_of_base(vlm)}
        card |= {} if role is None else learned(vlm)
        if card:
            (beside / CARD_FILE).write_text(json.dumps(card) + "\n", encoding="utf-8")
        model.save_pretrained(str(beside), selected_adapters=[name], save_embedding_layers=False)
        inner = beside / name
        if inner.is_dir():  # peft puts every adapter but `default` into a folder of its own
            for file in inner.iterdir():
                file.replace(beside / file.name)
            inner.rmdir()
        file = beside / "adapter_config.json"
        config = {**read_json(file), "base_model_name_or_path": lasting_name(vlm.name, folder)}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        seal(beside / DIGESTS_FILE, sorted(beside.glob("*.safetensors")))
        (folder / DIGESTS_FILE).unlink(
            missing_ok=True
        )  # a kill between the moves must not make new weights look damaged


def save_whole(vlm: UnifiedVLM, run: Path, *, role: Kind) -> Path:
    """Write a model of which all weights were trained to `run/model`, a base folder; returns it.

    Every process must call it, and holds the weights whole meanwhile; the main one writes.
    """
    folder = run / WHOLE
    card = {"role": role, "trained": {"base": vlm.lasting_name}}

    def write() -> None:
        with whole_folder(folder, last="config.json") as beside:  # without which nothing opens it
            save_base(vlm, beside, card)

    with gathered_adapter(vlm.model):
        on_main(write)
    return folder


def only_policy_trains(vlm: UnifiedVLM, adapter: str = FDM_ADAPTER) -> None:
    """Make the policy's adapter the active and only trainable one."""
    vlm.model.set_adapter(adapter)  # type: ignore[operator]
    for name, parameter in vlm.model.named_parameters():
        parameter.requires_grad_(f".{adapter}." in name)


def lora_config(model_config: ModelConfig, targets: Sequence[str]) -> LoraConfig:
    """The LoRA that a model config asks for, on `targets` unless it names its own.

    Raises:
        RewindError: a rank, scale or dropout that peft has no layer for; the head among the targets.
    """
    at_least(1, lora_r=model_config.lora_r)
    above_zero(lora_alpha=model_config.lora_alpha)
    if not 0 <= model_config.lora_dropout < 1:
        raise RewindError(f"--lora_dropout must lie from 0 to below 1, not be {model_config.lora_dropout:g}")
    config = get_peft_config(model_config)
    assert config is not None  # use_peft is true
    if config.target_modules is None:
        config.target_modules = set(targets)
    _check_targets(config)
    return config
