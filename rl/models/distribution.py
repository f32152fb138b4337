"""The one place that turns hidden states into probabilities of tokens.

Sampler, policy, old policy and reference all use a `TokenDistribution`: were the sampler to draw from the softmax over
image ids and the trainer to score with the softmax over the whole vocabulary, ratios, entropies and KL would be those
of another policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rl.checks import check_real, check_whole
from rl.errors import RewindError

HEAD_ROWS = 16_384
"""Rows of a head in half precision that are converted to float32 at once."""
HEAD_ROWS_GPU = 2048
"""The same backwards on a GPU, where the copy would be the peak; forwards and in bfloat16 there is none."""


def head_product(hidden_D: Tensor, rows_VD: Tensor) -> Tensor:
    """Logits float32 [..., V]: in half precision, too, nothing is rounded after the product."""
    with torch.autocast(hidden_D.device.type, enabled=False):
        if hidden_D.dtype == rows_VD.dtype == torch.float32:
            return torch.nn.functional.linear(hidden_D, rows_VD)
        product: Tensor = _HalfProduct.apply(hidden_D, rows_VD)  # type: ignore[no-untyped-call]
        return product


class _HalfProduct(torch.autograd.Function):
    """`head_product` where one of both is of half precision, without a copy of the head in float32.

    The rows are converted so many at a time, forwards and backwards: 256,000 words of 3,072 would be 3 GB.
    """

    @staticmethod
    def forward(ctx: Any, hidden_D: Tensor, rows_VD: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_D, rows_VD)
        if hidden_D.is_cuda and hidden_D.dtype == rows_VD.dtype:  # the same, without a conversion
            flat: Any = torch.mm(hidden_D.flatten(0, -2), rows_VD.T, out_dtype=torch.float32)  # type: ignore[call-overload]
            return flat.view(*hidden_D.shape[:-1], -1)  # type: ignore[no-any-return]
        wide = hidden_D.float()
        return torch.cat([torch.nn.functional.linear(wide, part.float()) for part in rows_VD.split(HEAD_ROWS)], -1)

    @staticmethod
    def backward(ctx: Any, gradient_V: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        hidden_D, rows_VD = ctx.saved_tensors
        for_hidden = head_gradient(gradient_V, rows_VD, hidden_D.dtype) if ctx.needs_input_grad[0] else None
        for_rows = None
        if ctx.needs_input_grad[1]:
            for_rows = (gradient_V.flatten(0, -2).T @ hidden_D.flatten(0, -2).float()).to(rows_VD.dtype)
        return for_hidden, for_rows


def head_gradient(gradient_V: Tensor, rows_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """What `head_product` answers a gradient of its logits with, float32 [..., V], for hidden states of a dtype: that
    of the hidden states, [..., D].
    """
    with torch.autocast(gradient_V.device.type, enabled=False):
        if rows_VD.dtype == dtype == torch.float32:
            return gradient_V @ rows_VD
        if rows_VD.is_cuda and rows_VD.dtype == dtype == torch.bfloat16:
            # Two products on tensor cores, which a product in float32 has none of.
            product: Any = torch.mm
            high, low = two_halves(gradient_V.flatten(0, -2))
            wide = product(high, rows_VD, out_dtype=torch.float32)
            wide += product(low, rows_VD, out_dtype=torch.float32)
            found: Tensor = wide.view(*gradient_V.shape[:-1], -1).to(dtype)
            return found
        few = HEAD_ROWS_GPU if rows_VD.is_cuda else HEAD_ROWS
        parts = zip(gradient_V.split(few, -1), rows_VD.split(few), strict=True)
        return sum(part @ rows.float() for part, rows in parts).to(dtype)  # type: ignore[union-attr]


def two_halves(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors in bfloat16 whose sum is a float32 one but for 2^-16 of each value."""
    high = wide.bfloat16()
    return high, (wide - high).bfloat16()


@dataclass(frozen=True)
class TokenDistribution:
    """Softmax over the allowed ids of (guided logits / temperature).

    Args:
        allowed_ids_V: int64 [V] vocabulary ids that can occur.
        temperature: 1 is the model's own distribution, 0 puts all probability on the best token.
        guidance: classifier-free guidance g: logits = g * conditional + (1 - g) * unconditional; 1 is off. Or a list of
            them, one for each free prompt, which has less of the condition each: g1 * (c - f1) + g2 * (f1 - f2) + f2,
            as Chameleon is guided with 3.0 (words) and 1.2 (picture).
    """

    allowed_ids_V: Tensor
    temperature: float = 1.0
    guidance: float | Sequence[float] = 1.0
    _position: Tensor = field(init=False, repr=False)
    _weights: tuple[float, ...] = field(init=False, repr=False)
    _lookups: dict[torch.device, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_real("the temperature", self.temperature)
        several = isinstance(self.guidance, list | tuple)
        guidance: list[Any] = list(self.guidance) if isinstance(self.guidance, list | tuple) else [self.guidance]
        if several and not guidance:
            raise RewindError("guidance is a number or a list of at least one")
        for one in guidance:
            check_real("guidance", one)
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise RewindError(f"the temperature must be 0 or more, not {self.temperature}")
        for one in guidance:
            if not -100 < one < 100:
                raise RewindError(f"guidance must be a moderate number (1 is off), not {one}")
        between = [after - before for before, after in pairwise(guidance)]
        object.__setattr__(self, "guidance", tuple(guidance) if several else self.guidance)  # hashable, as it is frozen
        object.__setattr__(self, "_weights", (guidance[0], *between, 1 - guidance[-1]))
        lookup = torch.full((int(self.allowed_ids_V.max()) + 1,), -1, dtype=torch.long)
        lookup[self.allowed_ids_V.cpu()] = torch.arange(len(self.allowed_ids_V))
        object.__setattr__(self, "_position", lookup)

    @property
    def guided(self) -> bool:
        """Whether log-probabilities need unconditional hidden states too."""
        return any(weight != 0 for weight in self._weights[1:])

    @property
    def branches(self) -> tuple[float, ...]:
        """What the logits of the conditional hidden states and of those after each free prompt are multiplied with."""
        return self._weights if self.guided else (1.0,)

    @property
    def free_prompts(self) -> int:
        """How many unconditional hidden states that takes, 0 without guidance."""
        return len(self._weights) - 1 if self.guided else 0

    def log_probs(self, hidden_D: Tensor, head_weight: Tensor, *unconditional_D: Tensor) -> Tensor:
        """Log-probabilities float32 [..., V] of the allowed ids from hidden states [..., D], with guidance also from
        those after each free prompt.
        """
        return self._tempered(self._logits(hidden_D, head_weight, *unconditional_D))

    def log_probs_and_plain(
        self, hidden_D: Tensor, head_weight: Tensor, *unconditional_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`log_probs`, and those of temperature 1 from the same logits, float32 [..., V] both."""
        logits = self._logits(hidden_D, head_weight, *unconditional_D)
        found = self._tempered(logits)
        return found, found if self.temperature == 1 else torch.log_softmax(logits, dim=-1)

    def _tempered(self, logits: Tensor) -> Tensor:
        """Log-probabilities float32 [..., V] of logits at the temperature."""
        if self.temperature == 0:
            best = torch.full_like(logits, float("-inf"))
            return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        if self.temperature != 1:  # the same to the bit, without a copy of the logits
            logits = logits / self.temperature
        return torch.log_softmax(logits, dim=-1)

    def log_probs_and_log_z(self, hidden_D: Tensor, head_weight: Tensor) -> tuple[Tensor, Tensor]:
        """`log_probs` float32 [..., V], and float32 [...] the log Z that was taken from the logits to get them.

        Raises:
            RewindError: temperature 0, which has no partition function.
        """
        if self.temperature == 0:
            raise RewindError("at temperature 0 there is no partition function: use a temperature above 0")
        logits = self._logits(hidden_D, head_weight) / self.temperature
        return torch.log_softmax(logits, dim=-1), torch.logsumexp(logits, dim=-1)

    def _logits(self, hidden_D: Tensor, head_weight: Tensor, *unconditional_D: Tensor) -> Tensor:
        """Guided logits float32 [..., V] before the temperature."""
        rows = self.rows(head_weight)
        logits = head_product(hidden_D, rows)
        if self.guided:
            if len(unconditional_D) != self.free_prompts:
                raise RewindError(
                    f"guidance needs unconditional hidden states beside the conditional ones: {self.free_prompts}, "
                    f"not {len(unconditional_D)}"
                )
            logits = self._weights[0] * logits
            for weight, free_D in zip(self._weights[1:], unconditional_D, strict=True):
                logits = logits + weight * head_product(free_D, rows)
        return logits

    def positions(self, ids: Tensor) -> Tensor:
        """Where vocabulary ids stand among the allowed ones.

        Raises:
            RewindError: an id is not allowed, so its probability would be 0.
        """
        lookup = self._lookups.setdefault(ids.device, self._position)
        if lookup.device != ids.device:
            lookup = self._lookups[ids.device] = lookup.to(ids.device)
        found = torch.where(ids < len(lookup), lookup[ids.clamp(max=len(lookup) - 1)], -1)
        if bool((found < 0).any()):
            raise RewindError(f"token {int(ids[found < 0][0])} cannot occur here: it is not among the allowed ids")
        return found

    @cached_property
    def over_rows(self) -> TokenDistribution:
        """The same with what `rows` returns for a head, so that many calls take the rows out of it once."""
        return replace(self, allowed_ids_V=torch.arange(len(self.allowed_ids_V)))

    def rows(self, head_weight: Tensor) -> Tensor:
        """The head's rows of the allowed ids; a view where they are contiguous, since a copy can be large."""
        if self._span is not None:
            return head_weight[slice(*self._span)]
        return head_weight[self.allowed_ids_V.to(head_weight.device)]

    @cached_property
    def _span(self) -> tuple[int, int] | None:
        """First allowed id and the one behind the last, where all between are allowed."""
        ids = self.allowed_ids_V
        first, last = int(ids[0]), int(ids[-1])
        whole = last - first + 1 == len(ids) and bool((ids[1:] > ids[:-1]).all())
        return (first, last + 1) if whole else None


@dataclass(frozen=True)
class Truncation:
    """top-k and top-p, for inference only: the support that they cut moves with the policy, so trainers refuse them."""

    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None:
            check_whole("top_k", self.top_k, least=1)
        if self.top_p is not None:
            check_real("top_p", self.top_p)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RewindError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def apply(self, log_probs_V: Tensor) -> Tensor:
        """Log-probabilities [..., V] with the tail cut off, renormalised."""
        kept = log_probs_V
        if self.top_k is not None and self.top_k < kept.shape[-1]:
            threshold = kept.topk(self.top_k, dim=-1).values[..., -1:]
            kept = kept.masked_fill(kept < threshold, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ordered, order = kept.softmax(-1).sort(-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p  # the token that crosses the threshold stays
            kept = kept.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
        return torch.log_softmax(kept, dim=-1)
