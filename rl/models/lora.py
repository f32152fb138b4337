"""LoRA's product in half precision, in two kernels a linear layer where peft launches seven.

peft casts the input to the adapter's float32, autocast casts it back, then come two products, the scale and the sum. A
sampler's step of one token is all launches, and a pass of many tokens reads and writes what the layer gives three times
more. In float32 peft's own is used, to the bit; other kinds of LoRA, and weights that ZeRO-3 has elsewhere, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional

HALF = (torch.bfloat16, torch.float16)


class InPlaceLinear(Linear):
    """peft's layer, whose plain adapter in half precision adds its product to what the base layer gives."""

    casts: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] | None = None
    """A and B as they are read, while `casts_kept`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + scale B A x; W x, A x and the sum are rounded to the dtype of W x, as all is under autocast."""
        name, dtype = self._plain(x), self._half(x)
        if args or kwargs or name is None or dtype is None:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        down_RD, up_ER = self._weights(name, dtype)
        flat_ND = x.flatten(0, -2)
        result_NE: Tensor = self.base_layer(flat_ND)
        dropped_ND = self.lora_dropout[name](flat_ND)
        # The product of base and input is not needed backwards, so what is added to it may take its place.
        result_NE.addmm_(functional.linear(dropped_ND.to(dtype), down_RD), up_ER.T, alpha=self.scaling[name])
        return result_NE.view(*x.shape[:-1], result_NE.shape[-1])

    def _plain(self, x: Tensor) -> str | None:
        """The one adapter that is active, where it is nothing but W + BA on whole weights; else None."""
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A or x.dim() < 2:
            return None
        (name,) = names
        if name in self.lora_variant or self.lora_bias[name] or type(self.base_layer) is not nn.Linear:
            return None
        parts: list[nn.Module] = [self.base_layer, self.lora_A[name], self.lora_B[name]]
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        elsewhere = any(hasattr(part.weight, "ds_id") for part in parts)
        return None if hooked or elsewhere else name

    def _half(self, x: Tensor) -> torch.dtype | None:
        """The dtype of what the base layer gives, where that is of half precision."""
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.get_base_layer().weight.dtype
        return dtype if dtype in HALF else None

    def _weights(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B of an adapter in a dtype."""
        kept = None if torch.is_grad_enabled() else self.casts
        if kept is not None and (name, dtype) in kept:
            return kept[name, dtype]
        found = self.lora_A[name].weight.to(dtype), self.lora_B[name].weight.to(dtype)
        if kept is not None:
            kept[name, dtype] = found
        return found


def add_in_place(model: Any) -> None:
    """Let the LoRA layers of a peft model be of that kind, for training and reading alike."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = InPlaceLinear


@contextmanager
def casts_kept(layers: Sequence[Any]) -> Iterator[None]:
    """For reading alone: adapters' weights are cast once, not in every pass. They may not change meanwhile."""
    ours = [layer for layer in layers if isinstance(layer, InPlaceLinear)]
    before = [layer.casts for layer in ours]
    try:
        for layer in ours:
            layer.casts = {}
        yield
    finally:
        for layer, casts in zip(ours, before, strict=True):
            layer.casts = casts
