"""Log-probabilities of image tokens and their gradient: over the image's codes against over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from rl.models.distribution import TokenDistribution
from trainers.bench.measure import Size, peak_bytes, seconds


def ours(size: Size) -> dict[str, Any]:
    hidden, head, ids, allowed = setting(size)
    distribution = TokenDistribution(allowed)

    def restricted() -> Tensor:
        return distribution.log_probs(hidden, head).gather(-1, distribution.positions(ids)[:, None])[:, 0]

    return _measured(restricted, hidden, size)


def baseline(size: Size) -> dict[str, Any]:
    hidden, head, ids, _ = setting(size)
    return _measured(lambda: -F.cross_entropy(hidden @ head.T, ids, reduction="none"), hidden, size)


def setting(size: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [N, D], a frozen head [V, D], image ids [N] and the ids that an image may consist of."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = torch.randn(size["tokens"], size["hidden"], device=device, requires_grad=True)
    head = torch.randn(size["vocabulary"], size["hidden"], device=device) / size["hidden"] ** 0.5
    allowed = torch.arange(4, 4 + size["codes"])
    ids = torch.randint(4, 4 + size["codes"], (size["tokens"],), device=device)
    return hidden, head, ids, allowed


def _measured(log_probs: Callable[[], Tensor], hidden: Tensor, size: Size) -> dict[str, Any]:
    def forward_and_backward() -> None:
        hidden.grad = None
        log_probs().mean().backward()

    return {"seconds": seconds(forward_and_backward, size["repeats"]), "bytes": peak_bytes(forward_and_backward)}
