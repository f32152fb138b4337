"""Prompts that have been read, and rows that go on from them: each with a copy of its prompt, or sharing it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rl.models.attention import DraftedPrefix, SharedPrefix, can_share, two_parts
from rl.models.costs import SHARED_FROM, TOKENS_A_PASS
from rl.models.graphs import LEAST_STEPS, Recorded, can_record
from rl.models.partial_attention import chunks
from rl.models.reserved_cache import reserved_cache
from rl.models.unified import UnifiedVLM

Layers = list[tuple[Tensor, Tensor]]


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any length -> ids and mask, int64 [B, T], aligned at their ends."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def shares_prompts(vlm: UnifiedVLM, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether rows behind these prompts share them: by the longest, whatever stands together in a batch."""
    return max(map(len, prompts), default=0) >= SHARED_FROM and can_share(vlm)


class Stream:
    """Prompts in the cache: `layers` of keys and values [P, heads, T, D], and the last hidden state [P, D] of each."""

    def __init__(
        self, vlm: UnifiedVLM, mask_PT: Tensor, hidden_PD: Tensor, layers: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.vlm, self.mask, self.hidden, self.layers = vlm, mask_PT, hidden_PD, layers

    @classmethod
    def prefill(cls, vlm: UnifiedVLM, prompts: Sequence[Sequence[int]]) -> Stream:
        """Read prompts of any lengths, each once, in one pass."""
        ids, mask = pad_left(prompts, vlm.layout.pad, vlm.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = vlm.hidden_states(
            ids, attention_mask=mask, position_ids=positions, past_key_values=DynamicCache(), use_cache=True
        )
        layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        return cls(vlm, mask, output.last_hidden_state[:, -1].clone(), layers)  # a view would keep all the others

    @classmethod
    def prefill_long(cls, vlm: UnifiedVLM, prompts: Sequence[Sequence[int]]) -> Stream:
        """The same of long prompts, `TOKENS_A_PASS` at once: what a pass holds beside keys and values stays small."""
        width = max(map(len, prompts))
        few = max(1, TOKENS_A_PASS // width)
        if few >= len(prompts):
            return cls.prefill(vlm, prompts)
        mask = torch.zeros(len(prompts), width, dtype=torch.long, device=vlm.device)
        layers: Layers = []
        hidden: list[Tensor] = []
        for part in chunks(len(prompts), few):
            read = cls.prefill(vlm, prompts[part])
            begin = width - read.mask.shape[1]
            if not layers:
                shape = (len(prompts), read.layers[0][0].shape[1], width, read.layers[0][0].shape[3])
                layers = [(keys.new_zeros(shape), values.new_zeros(shape)) for keys, values in read.layers]
            for whole, new in zip(layers, read.layers, strict=True):
                for all_of_it, some in zip(whole, new, strict=True):
                    all_of_it[part, :, begin:] = some
            mask[part, begin:] = read.mask
            hidden.append(read.hidden)
            del read, new, some  # else they stand beside the next pass
        return cls(vlm, mask, torch.cat(hidden), layers)

    def some(self, numbers: Sequence[int]) -> Stream:
        """Some of the prompts, in that order; those that stand together are no copy."""
        first = numbers[0]
        together = list(numbers) == list(range(first, first + len(numbers)))
        these: Any = slice(first, first + len(numbers)) if together else list(numbers)
        layers = [(keys[these], values[these]) for keys, values in self._layers()]
        return Stream(self.vlm, self.mask[these], self.hidden[these], layers)

    def rows(self, numbers_R: Tensor, room: int) -> CopiedRows:
        """A row for each given prompt that will read up to `room` tokens, on a cache of their own, so that the prefill
        can serve others too.
        """
        mask = torch.nn.functional.pad(self.mask[numbers_R], (0, room), value=1)
        cache = reserved_cache(self.layers, numbers_R, room)
        return CopiedRows(self.vlm, mask, room, self.hidden[numbers_R], cache)

    def shared_rows(self, times: int, room: int = 0) -> SharedRows:
        """`times` rows for each prompt, which all keep it once; `room`: tokens that a row will `push`, 0 if it only
        `read`s.
        """
        return self._rows_of(times, SharedPrefix(self._layers(), self.mask, times, room), room)

    def drafted_rows(self, times: int, tokens: int, window: int) -> SharedRows:
        """The same for rows that get ahead of one another: `read_on` of up to `window` tokens, and then `keep` of each
        what came true, until that are `tokens`.
        """
        return self._rows_of(times, DraftedPrefix(self._layers(), self.mask, times, tokens + window), tokens)

    def _rows_of(self, times: int, prefix: SharedPrefix, tokens: int) -> SharedRows:
        before = self.mask.sum(-1, keepdim=True).repeat_interleave(times, 0)
        return SharedRows(self.vlm, before, self.hidden.repeat_interleave(times, 0), prefix, tokens)

    def _layers(self) -> Layers:
        kind = self.layers[0][1].device.type
        if torch.is_autocast_enabled(kind):  # as sdpa would cast them, but once
            dtype = torch.get_autocast_dtype(kind)
            self.layers = [(keys.to(dtype), values.to(dtype)) for keys, values in self.layers]
        return self.layers


class PrefixCache:
    """The long prompts that were read last, for the next call about them: an inverse model names a pair of pictures and
    then scores words about it. For calls under one adapter and one precision, one at a time.

    A call that reads its prompts in several portions leaves the last one, so that no more is held than it held itself.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}
        self._stream: Stream | None = None

    def read(self, vlm: UnifiedVLM, prompts: Sequence[Sequence[int]]) -> Stream:
        """The prompts, in their order: of those at hand, no copy where they stand together there; else read now."""
        numbers = [self._numbers.get(tuple(prompt)) for prompt in prompts]
        if self._stream is not None and self._stream.vlm is vlm and None not in numbers:
            return self._stream.some([number for number in numbers if number is not None])
        self._numbers, self._stream = {}, None  # else they stand beside the new ones
        self._stream = Stream.prefill_long(vlm, prompts)
        self._numbers = {tuple(prompt): number for number, prompt in enumerate(prompts)}
        return self._stream


def prefix_cache(vlm: UnifiedVLM) -> PrefixCache | None:
    """A cache for pairs of pictures that are so long that rows share them; None where nothing would be found in it."""
    return PrefixCache() if 2 * vlm.layout.tokens_per_image >= SHARED_FROM and can_share(vlm) else None


class Rows:
    """Rows behind prompts: `hidden` [R, D] is the state that the next token is drawn from."""

    vlm: UnifiedVLM
    hidden: Tensor

    def read(self, ids_RT: Tensor) -> Tensor:
        """Hidden states [R, 1 + T, D]: the one that predicts the first of the given tokens, and those after each."""
        return torch.cat([self.hidden[:, None], self._pass(ids_RT)], 1) if ids_RT.shape[1] else self.hidden[:, None]

    def push(self, token_R: Tensor, then: Sequence[int] = ()) -> None:
        """Feed the drawn token of each row, and tokens that stand behind it in all rows, in one pass."""
        ids = token_R[:, None]
        if then:
            ids = torch.cat([ids, torch.tensor([then], device=ids.device).expand(len(ids), -1)], 1)
        self.hidden = self._pass(ids)[:, -1]

    def _pass(self, ids_RT: Tensor) -> Tensor:
        raise NotImplementedError


class CopiedRows(Rows):
    """Each row has a copy of its prompt, and room behind it: quickest where prompts are short.

    `mask_RT` is that of prompts and room, which is all ones.
    """

    def __init__(self, vlm: UnifiedVLM, mask_RT: Tensor, room: int, hidden_RD: Tensor, cache: DynamicCache) -> None:
        self.vlm, self.mask, self.hidden, self.cache = vlm, mask_RT, hidden_RD, cache
        self.length = mask_RT.shape[1] - room
        self.positions = mask_RT.cumsum(-1) - 1

    def _pass(self, ids_RT: Tensor) -> Tensor:
        begin, self.length = self.length, self.length + ids_RT.shape[1]
        output = self.vlm.hidden_states(
            ids_RT,
            attention_mask=self.mask[:, : self.length],
            position_ids=self.positions[:, begin : self.length],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]


class SharedRows(Rows):
    """Each row has room for the `tokens` that it reads; its prompt's keys and values are kept once for all rows of that
    prompt.
    """

    def __init__(
        self, vlm: UnifiedVLM, before_R1: Tensor, hidden_RD: Tensor, prefix: SharedPrefix, tokens: int
    ) -> None:
        self.vlm, self.before, self.hidden, self.prefix = vlm, before_R1, hidden_RD, prefix
        # A mask of four axes is taken as it is: two-part attention has masks of its own.
        self.no_mask = torch.zeros(1, 1, 1, 1, device=hidden_RD.device)
        pays = prefix.spans is not None and tokens >= LEAST_STEPS
        self.recorded = Recorded() if pays and can_record(vlm) else None

    def _pass(self, ids_RT: Tensor) -> Tensor:
        tokens = ids_RT.shape[1]
        self.prefix.begin(tokens)
        if self.prefix.by_spans:
            # Kernels of our own and recordings go to the current GPU, which need not be the model's.
            with torch.cuda.device(ids_RT.device) if ids_RT.is_cuda else nullcontext():
                hidden = self._by_spans(ids_RT) if self.recorded is None else self.recorded(self._by_spans, ids_RT)
        else:
            hidden = self._read(ids_RT, self.prefix.length + torch.arange(tokens, device=ids_RT.device))
        self.prefix.end(tokens)
        return hidden

    def _by_spans(self, ids_RT: Tensor) -> Tensor:
        assert self.prefix.spans is not None
        return self._read(ids_RT, self.prefix.spans.place)

    def _read(self, ids_RT: Tensor, at: Tensor) -> Tensor:
        with two_parts(self.vlm):
            output = self.vlm.hidden_states(
                ids_RT,
                attention_mask=self.no_mask,
                position_ids=self.before + at,
                past_key_values=self.prefix,
                use_cache=True,
                shared_prefix=self.prefix,
            )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def read_on(self, ids_RT: Tensor) -> Tensor:
        """Hidden states [R, T, D] after each of some tokens, which only `keep` makes part of their row.

        Where they attend by spans, T is always the same: a kernel is compiled for it, and a graph recorded.
        """
        return self._pass(ids_RT)

    def keep(self, counts_R: Tensor) -> None:
        """So many of the tokens that were read last stay; what stands behind them is read again."""
        self.prefix.keep(counts_R)
