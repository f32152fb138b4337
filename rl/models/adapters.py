"""LoRA adapters of several roles on one model: loading one, and running with one for a while.

`rl.models.unified.UnifiedVLM` is the door: its `attach_adapter` and `using` say what these do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl.errors import RewindError
from rl.models.bases import base_of_adapter, same_base
from rl.models.fingerprint import Fingerprint
from rl.models.known import CARD_FILE
from rl.running import seals
from rl.running.files import read_json

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

DIGESTS_FILE = "digests.json"
"""Beside an adapter's weights, says what they were when they were saved; older runs have none."""


def attach(model: Any, folder: Path, name: str, base: str) -> Any:
    """The model, wrapped by peft, with the adapter of a folder on it under a name; `base` names it in errors."""
    from peft import PeftModel

    from rl.models.lora import add_in_place

    weights = _adapter_weights(folder)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise RewindError(
            f"the adapter in {folder} cannot stand on layers that are read anew at every step: give all of them places "
            "on GPUs in device_map, or merge the run first (export.py)"
        )
    before, training = {id(p) for p in model.parameters() if p.requires_grad}, model.training
    if name in getattr(model, "peft_config", {}):
        raise RewindError(f"{base} already has an adapter named '{name}'")
    try:
        if isinstance(model, PeftModel):
            active = model.active_adapter
            model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
            model.set_adapter(active)
        else:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise RewindError(f"the adapter in {folder} does not fit {base}: {_short(error)}") from error
    add_in_place(model)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in before)
    model.train(training)  # peft leaves the model in evaluation mode
    loaded = sum(f".{name}." in key for key, _ in model.named_parameters())
    if loaded != len(weights):  # peft only warns of tensors without a place and of places without a tensor
        raise RewindError(
            f"the adapter in {folder} does not fit {base}: it has {len(weights)} tensors for {loaded} places"
        )
    return model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning of a property that transformers 5.23 deprecates and peft 0.21 reads as it wraps a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@contextmanager
def using(model: Any, adapter: str | None, merged: bool, base: str) -> Iterator[None]:
    """Run a model with one adapter in evaluation mode, for reading alone, and put everything back after.

    The adapter's weights may not change meanwhile: in half precision a copy of them is read.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    from rl.models.lora import casts_kept

    if adapter is not None and adapter not in getattr(model, "peft_config", {}):
        raise RewindError(f"{base} has no adapter named '{adapter}'")
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        if not isinstance(model, PeftModel):
            yield
            return
        layers: list[Any] = [module for module in modules if isinstance(module, BaseTunerLayer)]
        if layers and "holds" in vars(layers[0]):
            raise RewindError(f"the weights hold '{layers[0].holds}' merged: nothing else can be used meanwhile")
        held = _merged(layers, adapter) if merged and adapter is not None else nullcontext()
        with _active(model, layers, adapter), casts_kept(layers), held:
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _active(model: Any, layers: Sequence[Any], adapter: str | None) -> Iterator[None]:
    """One adapter, or none, is what layers read; said both ways, so that one role may be used inside another.

    peft's own switches also go through all parameters to say which of them train, which takes longer than a pass of a
    small model. A pass reads these fields alone (`tests/test_adapters.py`, of peft 0.21).
    """
    owners = (model, model.base_model)
    before = [owner.active_adapter for owner in owners]
    states = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = adapter is None
        if adapter is not None:
            for owner in owners:
                owner.active_adapter = adapter
            for layer in layers:
                layer._active_adapter = [adapter]
        yield
    finally:
        for owner, active in zip(owners, before, strict=True):
            owner.active_adapter = active
        for layer, (active, disabled) in zip(layers, states, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


@contextmanager
def _merged(layers: Sequence[Any], adapter: str) -> Iterator[None]:
    """Layers with an adapter's product added to their weights, where that is possible and exact enough."""
    from peft.tuners.lora import Linear

    from rl.models.lora import InPlaceLinear

    def possible(layer: Any) -> bool:
        weight = layer.get_base_layer().weight
        if torch.is_autocast_enabled(weight.device.type):  # the loss adds BAx to a rounded Wx: so must the sampler
            return False
        whole = weight.dtype == torch.float32 and weight.dim() == 2 and not hasattr(weight, "ds_id")
        plain = type(layer) in (Linear, InPlaceLinear) and not layer.lora_variant and not any(layer.lora_bias.values())
        return plain and whole and not layer.merged

    if not all(possible(layer) for layer in layers):
        yield
        return
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                if adapter in layer.lora_A:
                    layer.get_base_layer().weight.data = weight + layer.get_delta_weight(adapter)
                layer._disable_adapters = True  # `_active` puts it back
                layer.holds = adapter
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            vars(layer).pop("holds", None)


def told_of_base(vlm: UnifiedVLM) -> dict[str, Any]:
    """What an adapter's card says of the base that it was trained on, beside its name in `adapter_config.json`."""
    told = {"base": vlm.fingerprint and vlm.fingerprint.told(), "image_size": vlm.asked_size, "vq": vlm.asked_vq}
    return {key: value for key, value in told.items() if value is not None}


def base_told(folder: Path) -> tuple[Fingerprint | None, Any]:
    """What `told_of_base` wrote: the base's fingerprint, and the picture size that was asked for; None where neither
    was, as in older adapters.
    """
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    return Fingerprint.of_told(card.get("base")), card.get("image_size")


def vq_told(folder: Path) -> str | None:
    """The image tokenizer that was named beside the base when an adapter was trained; None where none was."""
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    return card.get("vq")


def stands_on(adapter: Path, base: str | Path, backbone: UnifiedVLM) -> bool:
    """Whether an adapter's base is a backbone's: by its fingerprint, or by name where there is none; and whether its
    pictures have that size.
    """
    told, size = base_told(adapter)
    if size not in (None, backbone.asked_size, backbone.image_size):
        return False
    if told is not None and backbone.fingerprint is not None:
        return told == backbone.fingerprint
    return same_base(base, backbone.name)


def both_bases(adapter: Path, base: str, backbone: UnifiedVLM) -> str:
    """What an adapter stands on, and the backbone that it was to be put on, in words."""
    told, size = base_told(adapter)
    if told is not None and backbone.fingerprint is not None and told != backbone.fingerprint:
        return f"{base_of_adapter(adapter)} ({told}), not to {backbone.name} ({backbone.fingerprint})"
    if size not in (None, backbone.asked_size, backbone.image_size):
        return f"{base} with pictures of {size} pixels, not to {backbone.name} with {backbone.image_size}"
    return f"{base}, not to {backbone.name}"


def check_digests(folder: Path) -> None:
    """Raise a `RewindError` if an adapter's weights are not as they were saved, where that can be known."""
    wrong = seals.damage(folder / DIGESTS_FILE) if (folder / DIGESTS_FILE).is_file() else None
    if wrong is not None:
        raise RewindError(
            f"the adapter in {folder} is damaged ({wrong} since it was saved): put a copy back, save it again with "
            f"--resume, or remove {DIGESTS_FILE} if the change is yours"
        )


def _adapter_weights(folder: Path) -> list[str]:
    """The names of an adapter's tensors.

    Raises:
        RewindError: no safetensors file, or an adapter that two roles cannot share a backbone with.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    check_digests(folder)
    if not file.is_file():  # peft would look for a pickle next, then for the folder's name on the Hub
        raise RewindError(f"{folder} has no adapter_model.safetensors: other formats are not opened")
    try:
        with safe_open(str(file), "pt") as found:
            names = list(found.keys())
    except (OSError, SafetensorError) as error:
        raise RewindError(f"{file} cannot be read: {_short(error)}") from error
    whole = [name for name in names if ".lora_" not in name or ".lm_head." in name]
    if whole:
        raise RewindError(
            f"the adapter in {folder} changes more than linear layers ('{whole[0]}'): train it without lm_head among "
            "its target modules and without modules_to_save"
        )
    return names


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
