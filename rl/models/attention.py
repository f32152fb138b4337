"""Two-part attention: rows behind a shared prompt read its keys and values where they lie, once a prompt.

Attention over prompt and row together is the mean of attention over each, weighted by their sums of exponentials:
softmax needs nothing else of either part. So a prompt's keys and values are kept once for all its rows, which read them
as the queries of one matrix product, and a row's own part lies in room that is reserved for it: nothing is copied or
grown. The state travels with each call (`shared_prefix=`), so that threads and backbones never meet in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rl.models.partial_attention import Attend, additive, partial_attention, single_kernel
from rl.models.unified import UnifiedVLM

logger = logging.getLogger("rl")

SHARED_PREFIX = "rewind_shared_prefix"
ABLE = ("sdpa", "eager", SHARED_PREFIX)
"""Attention that two-part attention may stand in for; others (flash_attention_2, ...) were asked for by name."""
BLOCK = 64
"""On a GPU a row's own part is read in steps of so many tokens, so that shapes and kernels seldom change."""


class Spans:
    """Where the two parts of a row's keys begin and end, on the device: the host's numbers would be part of a graph.

    A prompt's part is [begin_P, end_P), a row's own [0, behind) for the first token of a pass and one more for each
    that follows. `place` int64 [1], or [R, n] where rows get ahead of one another, is where they are written.
    """

    def __init__(self, attend: Attend, mask_PT: Tensor, times: int, device: torch.device) -> None:
        self.attend = attend
        self.end_P = torch.full((len(mask_PT),), mask_PT.shape[1], device=device)
        self.begin_P = self.end_P - mask_PT.sum(-1)
        self.zero_R = torch.zeros(len(mask_PT) * times, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.behind = self.place + 1

    def at(self, place: Tensor) -> None:
        """Say where the next tokens go, [1] or [R, n]; recordings want n always the same."""
        behind = place.view(-1, place.shape[-1])[:, 0] + 1
        if place.shape != self.place.shape:
            self.place, self.behind = place.clone(), behind
        else:
            self.place.copy_(place)
            self.behind.copy_(behind)

    def attention(
        self, query: Tensor, prompts: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], scaling: float
    ) -> Tensor:
        """[R, n, H, D] of queries [R, H, n, D] to both parts."""
        rows, heads, tokens, size = query.shape
        packed = query.transpose(1, 2).reshape(-1, heads, size).contiguous()  # of one row it may be a view
        before = self.attend(packed, *prompts, self.begin_P, self.end_P, scaling)
        behind = self.behind.expand(rows)
        return self.attend(packed, *own, self.zero_R, behind, scaling, before, tokens > 1)[0].view(
            rows, tokens, heads, size
        )


class SharedPrefix:
    """Keys and values of prompts, once a prompt, and of what their rows have read since; a cache to transformers.

    Args:
        layers: keys and values [P, heads, T, D] of each layer, as a prefill left them, all in one precision.
        mask_PT: 1 where a prompt has a token, 0 at the padding on its left.
        times: rows G of each prompt; row p * G + g stands behind prompt p.
        room: tokens that a row will read; 0 keeps nothing of them, for rows that are read in one pass.
        block: the own part's length is shown in multiples of it.
    """

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor]], mask_PT: Tensor, times: int, room: int, block: int | None = None
    ) -> None:
        self.layers_of_prompts, self.times, self.room, self.length = layers, times, room, 0
        first = layers[0][0]
        self.block = block or (1 if first.device.type == "cpu" else BLOCK)
        shape = (first.shape[0] * times, first.shape[1], room, first.shape[3])
        # Zeros, since what is not written yet is read with weight 0.
        self.own = [(k.new_zeros(shape), v.new_zeros(shape)) for k, v in layers] if room else []
        self.prompt_mask = None if bool(mask_PT.all()) else additive(mask_PT.bool(), first.dtype)[:, None, None]
        self.own_mask: Tensor | None = None
        self.causal = self.by_spans = False
        attend = single_kernel(first.device) if room else None
        self.spans = None if attend is None else Spans(attend, mask_PT, times, first.device)

    def begin(self, tokens: int) -> None:
        """Say that each row reads so many tokens next: the mask of their own part is made once for all layers."""
        self.by_spans = tokens == 1 and self.spans is not None
        if self.by_spans and self.spans is not None:
            self.spans.at(torch.full((1,), self.length, device=self.spans.place.device))
            return
        shown, first = self._shown(self.length + tokens), self.layers_of_prompts[0][0]
        self.causal = tokens > 1 and tokens == shown
        self.own_mask = None
        if not self.causal and not tokens == shown - self.length == 1:
            at = self.length + torch.arange(tokens, device=first.device)
            self.own_mask = additive(torch.arange(shown, device=first.device) <= at[:, None], first.dtype)

    def end(self, tokens: int) -> None:
        """Say that all layers have read them."""
        self.length += tokens

    def _shown(self, length: int) -> int:
        return min(-(-length // self.block) * self.block, self.room) if self.room else length

    def keep(self, counts_R: Tensor) -> None:
        """All that is read stays here: `DraftedPrefix` is for rows of which each keeps another part."""
        raise NotImplementedError

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What transformers' attention calls: write new keys and values, get all of the rows' own part."""
        if not self.room:
            return keys, values
        if self.by_spans and self.spans is not None:
            whole = self.own[layer_idx]
            for own, new in zip(whole, (keys, values), strict=True):
                own.index_copy_(2, self.spans.place, new.to(own.dtype))
            return whole
        end = self.length + keys.shape[2]
        own_keys, own_values = self.own[layer_idx]
        own_keys[:, :, self.length : end] = keys
        own_values[:, :, self.length : end] = values
        shown = self._shown(end)
        return own_keys[:, :, :shown], own_values[:, :, :shown]

    def in_its_precision(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors as the keys are: under autocast a norm may leave queries in float32."""
        return tuple(tensor.to(self.layers_of_prompts[0][0].dtype) for tensor in tensors)

    def get_seq_length(self, *_: Any) -> int:
        """How much stands before the next token, padding included."""
        return self.layers_of_prompts[0][0].shape[2] + self.length

    @property
    def is_compileable(self) -> bool:
        """No: transformers asks it of a cache that it may compile for."""
        return False


class DraftedPrefix(SharedPrefix):
    """The same with a length for each row: each keeps of what it has read only what came true."""

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor]], mask_PT: Tensor, times: int, room: int, block: int | None = None
    ) -> None:
        super().__init__(layers, mask_PT, times, room, block)
        rows = len(self.own[0][0])
        self.rows = torch.arange(rows, device=layers[0][0].device)[:, None]
        self.length: Any = torch.zeros_like(self.rows)  # [R, 1]
        self.at = self.rows
        self.shown = room
        self.by_spans = self.spans is not None

    def begin(self, tokens: int) -> None:
        device = self.rows.device
        self.at = self.length + torch.arange(tokens, device=device)
        if self.spans is not None:
            self.spans.at(self.at)
            self.at = self.spans.place
            return
        self.shown = self._shown(int(self.at.max()) + 1)
        visible = torch.arange(self.shown, device=device) <= self.at[..., None]
        self.own_mask = additive(visible, self.layers_of_prompts[0][0].dtype)[:, None]

    def end(self, tokens: int) -> None:
        pass

    def keep(self, counts_R: Tensor) -> None:
        """So many of the tokens that were read last stay; the others are written over."""
        self.length = self.length + counts_R[:, None]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        own_keys, own_values = self.own[layer_idx]
        own_keys[self.rows, :, self.at] = keys.transpose(1, 2).to(own_keys.dtype)
        own_values[self.rows, :, self.at] = values.transpose(1, 2).to(own_values.dtype)
        return own_keys[:, :, : self.shown], own_values[:, :, : self.shown]


def two_part_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: `query` [R, H, n, D]; `key` and `value` are the rows' own part.

    Without `shared_prefix`, as in a pass of another thread over a config that two backbones share, it is sdpa.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind, (query, key, value) = query.dtype, shared_prefix.in_its_precision(query, key, value)
    prompt_keys, prompt_values = shared_prefix.layers_of_prompts[module.layer_idx]
    if shared_prefix.by_spans and shared_prefix.spans is not None:
        found = shared_prefix.spans.attention(query, (prompt_keys, prompt_values), (key, value), scaling)
        return found.to(kind), None
    (prompts, kv_heads, _, _), (rows, heads, tokens, size) = prompt_keys.shape, query.shape
    groups = heads // kv_heads  # queries that share a head of keys
    times = shared_prefix.times
    of_prompts = query.view(prompts, times, kv_heads, groups, tokens, size).transpose(1, 2)
    before, before_lse = partial_attention(
        of_prompts.reshape(prompts, kv_heads, -1, size), prompt_keys, prompt_values, scaling, shared_prefix.prompt_mask
    )
    before = before.view(prompts, kv_heads, times, groups, tokens, size).transpose(1, 2).reshape(query.shape)
    before_lse = before_lse.view(prompts, kv_heads, times, groups, tokens).transpose(1, 2).reshape(rows, heads, tokens)
    if tokens == 1:
        packed = query.view(rows, kv_heads, groups, size)
        own, own_lse = partial_attention(packed, key, value, scaling, shared_prefix.own_mask)
        own, own_lse = own.reshape(query.shape), own_lse.reshape(rows, heads, 1)
    else:
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        own, own_lse = partial_attention(query, key, value, scaling, shared_prefix.own_mask, shared_prefix.causal)
    share = torch.sigmoid(before_lse - own_lse)[..., None]  # of the prompt in the sum of exponentials
    merged = torch.lerp(own.float(), before.float(), share).to(kind)
    return merged.transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_PREFIX, two_part_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)

_told: set[str] = set()


def can_share(vlm: UnifiedVLM) -> bool:
    """Whether a backbone's attention can be done in two parts; says once why not."""
    config: Any = vlm.transformer().config
    asked = str(config._attn_implementation)
    why = f"attention by {asked} cannot" if asked not in ABLE else "a model on several devices cannot" * vlm.divided
    if not why:
        return True
    if why not in _told:
        _told.add(why)
        logger.warning("%s share prompts, so each row keeps a copy: sdpa on one device can", why)
    return False


@contextmanager
def two_parts(vlm: UnifiedVLM) -> Iterator[None]:
    """The backbone's attention is two-part attention meanwhile; other threads wait."""
    config: Any = vlm.transformer().config
    with vlm._lock:
        before = config._attn_implementation
        config._attn_implementation = SHARED_PREFIX
        try:
            yield
        finally:
            config._attn_implementation = before
