"""Log-probabilities under a role's own distribution, through the model that a trainer wraps.

A loss must call the model as accelerate, DistributedDataParallel and DeepSpeed have wrapped it: they synchronise
gradients and gather weights in the wrapper's forward. TRL 1.16 calls it as `model(..., labels=labels,
fused_lm_head=True)` and patches the innermost model's forward to answer with log-probabilities over the whole
vocabulary (`trl.trainer.utils.add_fused_lm_head`). Here the same call answers with ours, so that SFT, DPO and GRPO
score with the distribution that the sampler draws from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from rl.models.distribution import TokenDistribution
from rl.unified import UnifiedVLM

IGNORED = -100


@dataclass
class TokenScores(ModelOutput):
    """What TRL reads of a fused forward, each [B, T - 1], 0 where the next token's label is -100.

    `log_probs` and `entropy` in nats, `mean_logits` the mean log-probability of the allowed tokens, `is_top1` whether
    the label is the likeliest of them. A `ModelOutput`, because ZeRO-3 looks for the tensors in what a forward returns.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None


def score_under(vlm: UnifiedVLM, distribution: TokenDistribution, entropy: bool = False) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` answer with `TokenScores` under `distribution`.

    Call it after TRL's trainer is built, which patches the same forward. Without `fused_lm_head` the forward is the
    family's own. `entropy` costs a second tensor of [tokens, allowed ids].
    """
    inner: Any = vlm.model
    inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    plain = type(inner).forward

    def forward(*arguments: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **settings: Any) -> Any:
        if not fused_lm_head or labels is None:
            return plain(inner, *arguments, labels=labels, **settings)
        settings["use_cache"] = False
        hidden = vlm.transformer()(*arguments, **settings).last_hidden_state[:, :-1]
        return _scores(distribution, hidden, vlm.head_weight(), labels[:, 1:], entropy)

    inner.forward = forward


def _scores(
    distribution: TokenDistribution, hidden_BTD: Tensor, head_weight: Tensor, labels_BT: Tensor, with_entropy: bool
) -> TokenScores:
    learned = labels_BT != IGNORED
    every = distribution.log_probs(hidden_BTD[learned], head_weight)
    positions = distribution.positions(labels_BT[learned])
    chosen = every.gather(-1, positions[:, None])[:, 0]
    entropy = -(every.exp() * every).sum(-1) if with_entropy else None
    with torch.no_grad():
        mean, top = every.mean(-1), every.argmax(-1) == positions

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(learned.shape).masked_scatter(learned, values)

    return TokenScores(spread(chosen), spread(entropy) if entropy is not None else None, spread(mean), spread(top))
