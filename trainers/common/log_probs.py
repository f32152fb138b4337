"""Log-probabilities under a role's own distribution, through the model that a trainer wraps.

A loss must call the model as accelerate, DistributedDataParallel and DeepSpeed have wrapped it: they synchronise
gradients and gather weights in the wrapper's forward. TRL 1.16 calls it as `model(..., labels=labels,
fused_lm_head=True)` and patches the innermost model's forward to answer with log-probabilities over the whole
vocabulary (`trl.trainer.utils.add_fused_lm_head`). Here the same call answers with ours, so that SFT, DPO and GRPO
score with the distribution that the sampler draws from.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from rl.models.costs import LOGITS_AT_ONCE
from rl.models.distribution import TokenDistribution
from rl.models.packing import packed
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
    vlm: UnifiedVLM, distribution: TokenDistribution, outputs: Collection[str] = (), entropy_learns: bool = False
) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` answer with `TokenScores` under `distribution`.

    Call it after TRL's trainer is built, which patches the same forward. Without `fused_lm_head` the forward is the
    family's own. A guided distribution is for an FDM's sequences, prompt and target padded on the left: they are read
    with and without their action's words in one pass of twice the rows, and gradients flow through both.

    With `own=n` the last n tokens of each row stand behind a prompt, all prompts ending in one column and without
    labels: those that are alike are read once (`rl.models.packing`).

    Args:
        vlm: the backbone.
        distribution: of the tokens that the labels name.
        outputs: what is wanted beside `log_probs`, by its name in `TokenScores`; `log_z` needs a temperature above 0
            and no guidance. A call leaves the entropy out by `entropy=False`.
        entropy_learns: whether gradients flow through the entropy, which costs two tensors of [tokens, allowed ids].
    """
    inner: Any = vlm.model
    inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    plain = type(inner).forward
    allowed = set(distribution.allowed_ids_V.tolist())
    forced = sorted(vlm.layout.grammar.forced - allowed)

    def forward(
        *arguments: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        own: int = 0,
        entropy: bool = True,
        **settings: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return plain(inner, *arguments, labels=labels, **settings)
        settings["use_cache"] = False
        if distribution.guided:
            settings |= _beside_action_free(vlm, settings["input_ids"], settings["attention_mask"])
        read = (settings["input_ids"], settings["attention_mask"], settings["position_ids"]) if own else None
        packing = None if read is None else packed(vlm, *read, own)
        if packing is None:
            hidden = vlm.transformer()(*arguments, **settings).last_hidden_state[:, :-1]
        else:
            hidden = packing.read(vlm)
        labels = labels[:, 1:]
        for token in forced:  # what stands there by rule: probability 1, no product with the head, no gradient
            labels = labels.masked_fill(labels == token, IGNORED)
        asked = [name for name in outputs if entropy or name != "entropy"]
        return _scores(distribution, hidden, vlm.head_weight(), labels, asked, entropy_learns)

    inner.forward = forward


def _beside_action_free(vlm: UnifiedVLM, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Inputs of twice the rows: sequences as they are, and then without the words of their action."""
    mask = torch.cat([mask_BT, vlm.without_words(mask_BT)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": torch.cat([ids_BT, ids_BT]), "attention_mask": mask, "position_ids": positions}


def _scores(
    distribution: TokenDistribution,
    hidden_BnD: Tensor,
    head_weight: Tensor,
    labels_BT: Tensor,
    outputs: Collection[str],
    entropy_learns: bool,
) -> TokenScores:
    """Hidden states predict the last n labels; all before them are -100."""
    learned, found = labels_BT != IGNORED, {}
    own = learned[:, -hidden_BnD.shape[1] :]
    if "log_z" in outputs:
        every, found["log_z"] = distribution.log_probs_and_log_z(hidden_BnD[own], head_weight)
    else:
        branches = hidden_BnD.chunk(2) if distribution.guided else (hidden_BnD,)
        conditional, *unconditional = (branch[own] for branch in branches)
        every = distribution.log_probs(conditional, head_weight, *unconditional)
    positions = distribution.positions(labels_BT[learned])
    found["log_probs"] = every.gather(-1, positions[:, None])[:, 0]
    if "entropy" in outputs:
        found["entropy"] = _entropy(every) if entropy_learns else _entropy_alone(every.detach())
    with torch.no_grad():
        if "mean_logits" in outputs:
            found["mean_logits"] = every.mean(-1)
        if "is_top1" in outputs:
            found["is_top1"] = every.argmax(-1) == positions
    spread = {n: values.new_zeros(learned.shape).masked_scatter(learned, values) for n, values in found.items()}
    return TokenScores(**spread)


def _entropy(log_probs_NV: Tensor) -> Tensor:
    return -(log_probs_NV.exp() * log_probs_NV).sum(-1)


def _entropy_alone(log_probs_NV: Tensor) -> Tensor:
    """Without gradients, some tokens after the other: a product of all of them would stand beside the loss."""
    few = max(1, LOGITS_AT_ONCE // log_probs_NV.shape[-1])
    return torch.cat([_entropy(part) for part in log_probs_NV.split(few)])
