"""Attention over a part of the keys, with the sum of exponentials that merging it with another part needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

Attend = Callable[..., tuple[Tensor, Tensor]]
SCORES_AT_ONCE = 2**27
"""Scores that `_by_hand` holds at once: half a GiB."""


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores: 0 where something is seen, else minus infinity."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, float("-inf"))


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention over a part of the keys, [B, H, L, D], and the log of its sum of exponentials, float32 [B, H, L].

    `mask` is added to the scores, [L or 1, T] or [B, 1, L or 1, T]; `causal`, of L = T: a query sees what is before it.
    """
    if query.device.type == "cpu":
        return _on_cpu(query, key, value, scaling, mask, causal)
    if query.device.type == "cuda" and query.shape[-1] % 8 == 0:
        return _on_gpu(query, key, value, scaling, mask, causal)
    if causal:
        ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = additive(ones.tril(), query.dtype)
    return _by_hand(query, key, value, scaling, mask)


def _on_cpu(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """By the kernel behind torch's sdpa, which holds no matrix of scores and knows the sum anyway."""
    if mask is not None:
        mask = mask.expand(query.shape[0] if mask.dim() == 4 else 1, 1, query.shape[2], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found, lse = kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scaling)
    return found, lse


def _on_gpu(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """By the kernels behind torch's sdpa; of these the one that takes masks wants them at addresses of 16 bytes."""
    able = query.dtype != torch.float32 and torch.cuda.get_device_capability(query.device)[0] >= 8
    if able and mask is None and query.shape[-1] <= 256:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        found, lse, *_ = flash(query, key, value, 0.0, causal, False, scale=scaling)
        return found, lse
    if mask is not None:
        length = mask.shape[-1]
        mask = torch.nn.functional.pad(mask, (0, -length % 16))[..., :length]
        mask = mask.expand(*query.shape[:3], length)
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    found, lse, *_ = kernel(query, key, value, mask, True, 0.0, causal, scale=scaling)
    return found, lse[..., : query.shape[2]]


def _by_hand(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """By two matrix products with scores in float32, for so many queries at once as keep those small."""
    batch, heads, length, size = query.shape
    keys, values = key.reshape(batch * heads, -1, size), value.reshape(batch * heads, -1, size)
    few = max(1, SCORES_AT_ONCE // (batch * heads * keys.shape[1]))
    found, sums = [], []
    for part in chunks(length, few):
        scores = _float_product(query[:, :, part].reshape(batch * heads, -1, size), keys.transpose(1, 2)) * scaling
        if mask is not None:
            here = mask if mask.shape[-2] == 1 else mask[..., part, :]
            scores = (scores.view(batch, heads, *scores.shape[1:]) + here).flatten(0, 1)
        sums.append(scores.logsumexp(-1))
        weights = (scores - sums[-1][..., None]).exp()
        found.append(torch.bmm(weights.to(values.dtype), values))
    return torch.cat(found, 1).view(query.shape), torch.cat(sums, 1).view(batch, heads, length)


@cache
def single_kernel(device: torch.device) -> Attend | None:
    """`rl.models.gpu_attention.attend` on a GPU of 2020 or later where Triton is installed, as with torch on Linux."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        return None
    try:
        from rl.models.gpu_attention import attend
    except ImportError:
        return None
    return attend


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover range(total), at most `size` each."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product in float32 of operands that may be in half precision."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload]
    return torch.bmm(a.float(), b.float())
