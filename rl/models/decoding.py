"""The decoding loop of the sampler: one token of every row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.models.distribution import TokenDistribution, Truncation
from rl.models.streams import Rows


@dataclass(frozen=True)
class How:
    """What all rows of a call have in common."""

    distribution: TokenDistribution
    max_tokens: int
    stop: int | None
    truncation: Truncation | None
    after: Sequence[Sequence[int]] | None
    plain: bool = False
    """Whether the log-probabilities are those at temperature 1 and without truncation, however tokens are drawn."""


def decode(streams: Sequence[Rows], how: How, uniform: Any, kept_RT: Tensor | None) -> tuple[Tensor, Tensor]:
    """The decoding loop: ids int64 and log-probabilities float32 [rows, T]."""
    vlm, distribution = streams[0].vlm, how.distribution
    head, allowed = vlm.head_weight(), distribution.allowed_ids_V.to(vlm.device)
    rows = len(streams[0].hidden)
    running = torch.ones(rows, dtype=torch.bool, device=vlm.device)
    ids, logprobs = [], []
    for t in range(how.max_tokens):
        hidden = [stream.hidden for stream in streams]
        if how.plain:
            log_probs, told = distribution.log_probs_and_plain(hidden[0], head, *hidden[1:])
        else:
            log_probs = told = distribution.log_probs(hidden[0], head, *hidden[1:])
        if how.truncation is not None:
            log_probs = how.truncation.apply(log_probs)
            told = told if how.plain else log_probs
        chosen = invert(log_probs, uniform(t))
        if kept_RT is not None:
            kept = kept_RT[:, t]
            chosen = torch.where(kept < 0, chosen, distribution.positions(torch.where(kept < 0, allowed[0], kept)))
        token = torch.where(running, allowed[chosen], vlm.layout.pad)
        ids.append(token)
        logprobs.append(torch.where(running, told.gather(-1, chosen[:, None])[:, 0], 0.0))
        if how.stop is not None:
            running &= token != how.stop
            if not bool(running.any()):
                break
        if t + 1 < how.max_tokens:
            for stream in streams:
                stream.push(token, how.after[t] if how.after is not None else ())
    return torch.stack(ids, 1), torch.stack(logprobs, 1)


def invert(log_probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes the uniform number, int64 [B]."""
    cumulative = log_probs_BV.double().exp().cumsum(-1)
    target = (uniform_B * cumulative[:, -1])[:, None]
    found = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=log_probs_BV.shape[-1] - 1)
    return found
