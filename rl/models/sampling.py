"""Draws tokens: prefill once a prompt, copy the cache to its candidates, one token at a time.

The next token is the inverse of the cumulative distribution at a stateless uniform number (`rl.models.noise`), so a
candidate does not depend on the batch it is drawn in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rl.models.distribution import TokenDistribution, Truncation
from rl.models.known import MAX_ROWS
from rl.models.noise import Noise, prompt_key
from rl.models.unified import UnifiedVLM


@dataclass(frozen=True)
class Drawn:
    """Sampled sequences: `ids_PGT` int64 and `logprobs_PGT` float32, [prompts, candidates, tokens].

    With a stop token, what follows it in a row is the pad id with log-probability 0.
    """

    ids_PGT: Tensor
    logprobs_PGT: Tensor


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any length -> ids and mask, int64 [B, T], aligned at their ends."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


class Stream:
    """Prompts in the cache and the hidden state that the next token is drawn from."""

    def __init__(self, vlm: UnifiedVLM, mask_BT: Tensor, hidden_BD: Tensor, cache: Any) -> None:
        self.vlm, self.mask, self.hidden, self.cache = vlm, mask_BT, hidden_BD, cache

    @classmethod
    def prefill(cls, vlm: UnifiedVLM, prompts: Sequence[Sequence[int]]) -> Stream:
        ids, mask = pad_left(prompts, vlm.layout.pad, vlm.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = vlm.hidden_states(
            ids, attention_mask=mask, position_ids=positions, past_key_values=DynamicCache(), use_cache=True
        )
        return cls(vlm, mask, output.last_hidden_state[:, -1], output.past_key_values)

    def rows(self, numbers_R: Tensor) -> Stream:
        """A row for each given prompt, on a cache of their own, so that the prefill can serve others too."""
        cache = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            here = numbers_R.to(layer.keys.device)  # a divided model has its layers on several devices
            cache.update(layer.keys[here], layer.values[here], index)
        return Stream(self.vlm, self.mask[numbers_R], self.hidden[numbers_R], cache)

    def read(self, ids_RT: Tensor) -> Tensor:
        """Hidden states [R, 1 + T, D]: the one that predicts the first of the given tokens, and those after each."""
        if not ids_RT.shape[1]:
            return self.hidden[:, None]
        before, after = self.mask.sum(-1, keepdim=True), torch.ones_like(ids_RT)
        output = self.vlm.hidden_states(
            ids_RT,
            attention_mask=torch.cat([self.mask, after], 1),
            position_ids=before + after.cumsum(-1) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        return torch.cat([self.hidden[:, None], output.last_hidden_state], 1)

    def push(self, token_B: Tensor, then: Sequence[int] = ()) -> None:
        """Feed the drawn token of each row, and tokens that stand behind it in all rows, in one pass."""
        ids = token_B[:, None]
        if then:
            ids = torch.cat([ids, torch.tensor([then], device=ids.device).expand(len(ids), -1)], 1)
        before = self.mask.sum(-1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        output = self.vlm.hidden_states(
            ids,
            attention_mask=self.mask,
            position_ids=before + torch.arange(ids.shape[1], device=ids.device),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden, self.cache = output.last_hidden_state[:, -1], output.past_key_values


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover range(total), at most `size` each."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


@torch.no_grad()
def sample_tokens(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    *,
    num_samples: int,
    max_tokens: int,
    noise: Noise,
    stop: int | None = None,
    unconditional: Sequence[Sequence[int]] | None = None,
    truncation: Truncation | None = None,
    max_rows: int = MAX_ROWS,
    first: int | Sequence[int] = 0,
    kept_PT: Tensor | None = None,
    after: Sequence[Sequence[int]] | None = None,
) -> Drawn:
    """Draw `num_samples` continuations of each prompt under the active adapter.

    Args:
        vlm: the backbone.
        prompts: token ids, of any lengths.
        distribution: the only place where logits become probabilities.
        num_samples: candidates G a prompt.
        max_tokens: tokens T a candidate; exactly as many without `stop`.
        noise: seed and step; the rest of the noise is prompt, candidate and token.
        stop: an id that ends a row.
        unconditional: for a guided distribution, the prompts without their condition.
        truncation: top-k and top-p, inference only; the returned log-probabilities include it.
        max_rows: rows decoded at once; bounds the memory of the cache.
        first: number of the first candidate, for callers that draw some and later more: candidate g is the same. Or
            one number a prompt.
        kept_PT: int64 [P, T], ids that every candidate of a prompt has at a position, -1 where it is drawn. A kept id
            gets its log-probability from the same distribution, so a row's sum is still that of the whole sequence.
        after: ids that stand by rule behind each token (`PictureGrammar.after`): read, and neither drawn nor returned.
    """
    prompts_a_chunk, samples_a_chunk = max(1, max_rows // num_samples), min(num_samples, max_rows)
    first_P = torch.tensor(
        [first] * len(prompts) if not isinstance(first, Sequence) else list(first), device=vlm.device
    )
    rows_P: list[tuple[Tensor, ...]] = []
    for part in chunks(len(prompts), prompts_a_chunk):
        streams = [Stream.prefill(vlm, prompts[part])]
        if distribution.guided:
            assert unconditional is not None, "a guided distribution needs unconditional prompts"
            streams.append(Stream.prefill(vlm, unconditional[part]))
        keys = torch.tensor([prompt_key(prompt) for prompt in prompts[part]], device=vlm.device)
        rows_G: list[tuple[Tensor, ...]] = []
        for group in chunks(num_samples, samples_a_chunk):
            times = group.stop - group.start
            repeated = torch.arange(len(keys), device=vlm.device).repeat_interleave(times)
            numbers = torch.arange(group.start, group.stop, device=vlm.device).repeat(len(keys))
            numbers += first_P[part].repeat_interleave(times)
            kept = None if kept_PT is None else kept_PT[part].to(vlm.device).repeat_interleave(times, 0)
            drawn = _decode(
                [stream.rows(repeated) for stream in streams],
                distribution,
                partial(noise.uniform, keys.repeat_interleave(times), numbers),
                max_tokens,
                stop,
                truncation,
                kept,
                after,
            )
            rows_G.append(tuple(x.view(len(keys), times, -1) for x in drawn))
        rows_P.append(_joined(rows_G, 1, vlm.layout.pad))
    return Drawn(*_joined(rows_P, 0, vlm.layout.pad))


def _joined(parts: Sequence[tuple[Tensor, ...]], axis: int, pad: int) -> tuple[Tensor, Tensor]:
    """Chunks of (ids, log-probabilities) put together; with a stop token they may have ended at different lengths."""
    width = max(ids.shape[-1] for ids, _ in parts)
    ids_PGT = [torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=pad) for ids, _ in parts]
    logprobs_PGT = [torch.nn.functional.pad(logprobs, (0, width - logprobs.shape[-1])) for _, logprobs in parts]
    return torch.cat(ids_PGT, axis), torch.cat(logprobs_PGT, axis)


def _decode(
    streams: list[Stream],
    distribution: TokenDistribution,
    uniform: Any,
    max_tokens: int,
    stop: int | None,
    truncation: Truncation | None,
    kept_RT: Tensor | None,
    after: Sequence[Sequence[int]] | None,
) -> tuple[Tensor, Tensor]:
    """The decoding loop: ids int64 and log-probabilities float32 [rows, T]."""
    vlm = streams[0].vlm
    head, allowed = vlm.head_weight(), distribution.allowed_ids_V.to(vlm.device)
    rows = len(streams[0].hidden)
    running = torch.ones(rows, dtype=torch.bool, device=vlm.device)
    ids, logprobs = [], []
    for t in range(max_tokens):
        log_probs = distribution.log_probs(streams[0].hidden, head, *(s.hidden for s in streams[1:]))
        if truncation is not None:
            log_probs = truncation.apply(log_probs)
        chosen = _invert(log_probs, uniform(t))
        if kept_RT is not None:
            kept = kept_RT[:, t]
            chosen = torch.where(kept < 0, chosen, distribution.positions(torch.where(kept < 0, allowed[0], kept)))
        token = torch.where(running, allowed[chosen], vlm.layout.pad)
        ids.append(token)
        logprobs.append(torch.where(running, log_probs.gather(-1, chosen[:, None])[:, 0], 0.0))
        if stop is not None:
            running &= token != stop
            if not bool(running.any()):
                break
        if t + 1 < max_tokens:
            for stream in streams:
                stream.push(token, after[t] if after is not None else ())
    return torch.stack(ids, 1), torch.stack(logprobs, 1)


def _invert(log_probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes the uniform number, int64 [B]."""
    cumulative = log_probs_BV.double().exp().cumsum(-1)
    target = (uniform_B * cumulative[:, -1])[:, None]
    found = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=log_probs_BV.shape[-1] - 1)
    return found
