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
from rl.models.unified import UnifiedVLM

IGNORED = -100


@dataclass
class TokenScores(ModelOutput):
    """What TRL reads of a fused forward, each [B, T - 1], 0 where the next token's label is -100.

    `log_probs` and `entropy` in nats, `mean_logits` the mean log-probability of the allowed tokens, `is_top1` whether
    the label is the likeliest of them, `log_z` the logarithm of the partition function over the allowed ids. A
    `ModelOutput`, because ZeRO-3 looks for the tensors in what a forward returns.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None
    log_z: Tensor | None = None


def score_under(
    vlm: UnifiedVLM, distribution: TokenDistribution, entropy: bool = False, with_log_z: bool = False
) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` answer with `TokenScores` under `distribution`.

    Call it after TRL's trainer is built, which patches the same forward. Without `fused_lm_head` the forward is the
    family's own. `entropy` costs a second tensor of [tokens, allowed ids]; `with_log_z` wants a temperature above 0 and
    no guidance. A guided distribution is for an FDM's sequences, prompt and target padded on the left: they are read
    with and without their action's words in one pass of twice the rows, and gradients flow through both.
    """
    inner: Any = vlm.model
    inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    plain = type(inner).forward
    allowed = set(distribution.allowed_ids_V.tolist())
    forced = sorted(vlm.layout.grammar.forced - allowed)

    def forward(*arguments: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **settings: Any) -> Any:
        if not fused_lm_head or labels is None:
            return plain(inner, *arguments, labels=labels, **settings)
        settings["use_cache"] = False
        if distribution.guided:
            settings |= _beside_action_free(vlm, settings["input_ids"], settings["attention_mask"])
        hidden = vlm.transformer()(*arguments, **settings).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        for token in forced:  # what stands there by rule: probability 1, no product with the head, no gradient
            labels = labels.masked_fill(labels == token, IGNORED)
        return _scores(distribution, hidden, vlm.head_weight(), labels, entropy, with_log_z)

    inner.forward = forward


def _beside_action_free(vlm: UnifiedVLM, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Inputs of twice the rows: sequences as they are, and then without the words of their action."""
    mask = torch.cat([mask_BT, vlm.without_words(mask_BT)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": torch.cat([ids_BT, ids_BT]), "attention_mask": mask, "position_ids": positions}


def _scores(
    distribution: TokenDistribution,
    hidden_BTD: Tensor,
    head_weight: Tensor,
    labels_BT: Tensor,
    with_entropy: bool,
    with_log_z: bool,
) -> TokenScores:
    learned, log_z = labels_BT != IGNORED, None
    if with_log_z:
        every, log_z = distribution.log_probs_and_log_z(hidden_BTD[learned], head_weight)
    else:
        branches = hidden_BTD.chunk(2) if distribution.guided else (hidden_BTD,)
        conditional, *unconditional = (branch[learned] for branch in branches)
        every = distribution.log_probs(conditional, head_weight, *unconditional)
    positions = distribution.positions(labels_BT[learned])
    chosen = every.gather(-1, positions[:, None])[:, 0]
    entropy = -(every.exp() * every).sum(-1) if with_entropy else None
    with torch.no_grad():
        mean, top = every.mean(-1), every.argmax(-1) == positions

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(learned.shape).masked_scatter(learned, values)

    return TokenScores(
        log_probs=spread(chosen),
        entropy=None if entropy is None else spread(entropy),
        mean_logits=spread(mean),
        is_top1=spread(top),
        log_z=None if log_z is None else spread(log_z),
    )
