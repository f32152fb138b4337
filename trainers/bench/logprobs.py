"""Log-probabilities of a picture's tokens, their entropy and gradient: over the image's codes against TRL's tiled head.

The baseline is what TRL's `GRPOTrainer` does with any model: `add_fused_lm_head`, which projects through the whole head
in tiles and keeps none of them. The head is frozen in both, as under LoRA; with `half` all is in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

from rl.models.distribution import TokenDistribution
from trainers.bench.measure import Size, peak_bytes, seconds
from trainers.common.log_probs import token_scores


def ours(size: Size) -> dict[str, Any]:
    step = steps(size)[0]
    return {"seconds": seconds(step, size["repeats"]), "bytes": peak_bytes(step)}


def baseline(size: Size) -> dict[str, Any]:
    step = steps(size)[1]
    return {"seconds": seconds(step, size["repeats"]), "bytes": peak_bytes(step)}


def steps(size: Size) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forwards and backwards: ours and the baseline's, on the same numbers."""
    hidden, head, ids, allowed = setting(size)
    fused, distribution = fused_head(hidden, head), TokenDistribution(allowed)

    def step(log_probs: Callable[[], Tensor]) -> None:
        hidden.grad = None
        log_probs().mean().backward()

    return (
        lambda: step(lambda: restricted(hidden, head, ids, distribution)[0]),
        lambda: step(lambda: tiled(fused, ids)[0]),
    )


def setting(size: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [N, D], a frozen head [V, D], image ids [N] and the ids that an image may consist of."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how: Any = {"device": device, "dtype": torch.bfloat16 if size.get("half") else torch.float32}
    hidden = torch.randn(size["tokens"], size["hidden"], requires_grad=True, **how)
    head = torch.randn(size["vocabulary"], size["hidden"], **how) / size["hidden"] ** 0.5
    allowed = torch.arange(4, 4 + size["codes"])
    ids = torch.randint(4, 4 + size["codes"], (size["tokens"],), device=device)
    return hidden, head, ids, allowed


def restricted(hidden: Tensor, head: Tensor, ids: Tensor, distribution: TokenDistribution) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies float32 [N] by our distribution, as the loss of GRPO asks for them."""
    found: Any = token_scores(distribution, hidden[None], head, ids[None], ["entropy"])
    return found.log_probs[0], found.entropy[0]


def tiled(fused: FusedHead, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The same over the whole vocabulary by TRL's fused head."""
    labels = torch.cat([ids.new_zeros(1), ids])[None]  # the first has nothing before it
    found: Any = fused(labels, labels=labels, fused_lm_head=True)
    return found.log_probs[0], found.entropy[0]


class FusedHead(nn.Module):
    """As much of a language model as TRL's fused head looks at, with hidden states [N, D] that are there already."""

    def __init__(self, hidden: Tensor, head: Tensor) -> None:
        super().__init__()
        self.hidden = hidden
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False, device="meta")
        self.head.weight = nn.Parameter(head, requires_grad=False)

    def base_model(self, _: Tensor, **__: Any) -> Any:
        """Hidden states [1, N + 1, D]; nothing follows the last one."""
        return SimpleNamespace(last_hidden_state=nn.functional.pad(self.hidden, (0, 0, 0, 1))[None])

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden)
        return logits


def fused_head(hidden: Tensor, head: Tensor) -> FusedHead:
    """A model with TRL's fused head as `GRPOTrainer` sets it."""
    model: Any = FusedHead(hidden, head)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model  # type: ignore[no-any-return]
