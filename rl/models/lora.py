"""LoRA's product in half precision, in two kernels a linear layer where peft launches seven.

peft casts the input to the adapter's float32, autocast casts it back, then come two products, the scale and the sum. A
sampler's step of one token is all launches, and a pass of many tokens reads and writes what the layer gives three times
more. In float32 peft's own is used, to the bit; other kinds of LoRA, and weights that ZeRO-3 has elsewhere, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HALF = (torch.bfloat16, torch.float16)


def fuse(model: Any) -> None:
    """Let the plain LoRA layers of a peft model add their product in place, for training and reading alike."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if type(layer) is Linear and "forward" not in vars(layer):  # hooks of a divided model have put theirs there
            layer.forward = MethodType(_forward, layer)


@contextmanager
def casts_kept(layers: Sequence[Any]) -> Iterator[None]:
    """For reading alone: adapters' weights are cast once, not in every pass. They may not change meanwhile."""
    before = [vars(layer).get("casts") for layer in layers]
    try:
        for layer in layers:
            layer.casts = {}
        yield
    finally:
        for layer, casts in zip(layers, before, strict=True):
            layer.casts = casts


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """peft's `lora.Linear.forward`: W x + scale B A x, each rounded once to the dtype of W x."""
    name, dtype = _plain(layer, x), _dtype(layer, x)
    if args or kwargs or name is None or dtype not in HALF:
        found: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return found
    down_RD, up_ER = _weights(layer, name, dtype)
    flat_ND = x.flatten(0, -2)
    result_NE: Tensor = layer.base_layer(flat_ND)
    dropped_ND = layer.lora_dropout[name](flat_ND)
    # The product of base and input is not needed backwards, so what is added to it may take its place.
    result_NE.addmm_(functional.linear(dropped_ND.to(dtype), down_RD), up_ER.T, alpha=layer.scaling[name])
    return result_NE.view(*x.shape[:-1], -1)


def _plain(layer: Any, x: Tensor) -> str | None:
    """The one adapter that is active on a layer, where it is nothing but W + BA; else None."""
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    (name,) = names
    others = name in layer.lora_variant or layer.lora_bias[name] or type(layer.base_layer) is not nn.Linear
    elsewhere = any(hasattr(part[name].weight, "ds_id") for part in (layer.lora_A, layer.lora_B))
    return None if others or elsewhere or x.dim() < 2 else name


def _dtype(layer: Any, x: Tensor) -> torch.dtype:
    """Of what the base layer gives."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    found: torch.dtype = layer.get_base_layer().weight.dtype
    return found


def _weights(layer: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and B of an adapter in a dtype."""
    kept = None if torch.is_grad_enabled() else vars(layer).get("casts")
    if kept is not None and (name, dtype) in kept:
        return kept[name, dtype]  # type: ignore[no-any-return]
    found = layer.lora_A[name].weight.to(dtype), layer.lora_B[name].weight.to(dtype)
    if kept is not None:
        kept[name, dtype] = found
    return found
