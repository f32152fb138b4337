"""Log-probabilities under a role's own distribution, through the model that a trainer wraps.

A loss must call the model as accelerate, DistributedDataParallel and DeepSpeed have wrapped it: they synchronise
gradients and gather weights in the wrapper's forward. TRL 1.16 calls it as `model(..., labels=labels,
fused_lm_head=True)` and patches the innermost model's forward to answer with log-probabilities over the whole
vocabulary (`trl.trainer.utils.add_fused_lm_head`). Here the same call answers with ours, so that SFT, DPO and GRPO
score with the distribution that the sampler draws from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from rl.models.costs import LOGITS_AT_ONCE
from rl.models.distribution import TokenDistribution, head_gradient
from rl.models.packing import packed
from rl.models.unified import UnifiedVLM

IGNORED = -100
OUTPUTS = ("entropy", "mean_logits", "is_top1", "log_z")
"""What can be asked for beside `log_probs`."""


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
        entropy_learns: whether gradients flow through the entropy, which costs a further product with the head.
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
        return token_scores(distribution, hidden, vlm.head_weight(), labels, asked, entropy_learns)

    inner.forward = forward


def _beside_action_free(vlm: UnifiedVLM, ids_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Inputs of twice the rows: sequences as they are, and then without the words of their action."""
    mask = torch.cat([mask_BT, vlm.without_words(mask_BT)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": torch.cat([ids_BT, ids_BT]), "attention_mask": mask, "position_ids": positions}


def token_scores(
    distribution: TokenDistribution,
    hidden_BnD: Tensor,
    head_weight: Tensor,
    labels_BT: Tensor,
    outputs: Collection[str] = (),
    entropy_learns: bool = False,
) -> TokenScores:
    """Scores of tokens from the hidden states before them.

    Of many tokens no logits are kept, and with a frozen head none are computed again: see `_SlopesAhead`. A head that
    trains, and float16, keep them.

    Args:
        distribution: of the tokens that the labels name.
        hidden_BnD: float; they predict the last n labels, all before which are -100. With guidance [2B, n, D]:
            with and without the words.
        head_weight: float [vocabulary, D].
        labels_BT: int64, -100 where nothing is scored.
        outputs, entropy_learns: as for `score_under`.
    """
    learned = labels_BT != IGNORED
    own = learned[:, -hidden_BnD.shape[1] :]
    hidden = [branch[own] for branch in hidden_BnD.chunk(2 if distribution.guided else 1)]
    positions, rows = distribution.positions(labels_BT[learned]), distribution.rows(head_weight)
    names = ["log_probs", *(name for name in OUTPUTS if name in outputs)]
    score = _Score(distribution.over_rows, rows, names, entropy_learns)
    few = max(1, LOGITS_AT_ONCE // len(rows))
    learning = torch.is_grad_enabled()
    # A slope in float16 would be rounded before the loss is scaled up, so that small ones were lost.
    kept = rows.requires_grad or hidden[0].dtype == torch.float16
    if len(positions) <= few or (learning and kept):
        found = score(positions, *hidden)
    elif learning and any(branch.requires_grad for branch in hidden):
        found = _SlopesAhead.apply(score, few, positions, *hidden)  # type: ignore[no-untyped-call]
    else:
        tiles = zip(*(whole.split(few) for whole in (positions, *hidden)), strict=True)
        found = [torch.cat(parts) for parts in zip(*(score(*tile) for tile in tiles), strict=True)]
    named = zip(names, found, strict=True)
    return TokenScores(**{n: values.new_zeros(learned.shape).masked_scatter(learned, values) for n, values in named})


@dataclass(frozen=True)
class _Score:
    """What is asked of tokens, from their positions among the allowed ids [N] and hidden states [N, D] of each branch:
    tensors [N], named `names`.
    """

    distribution: TokenDistribution
    rows_VD: Tensor
    names: list[str]
    entropy_learns: bool

    def __call__(self, positions_N: Tensor, *hidden_ND: Tensor) -> list[Tensor]:
        every, log_z = self._every(*hidden_ND)
        found = self._of(every, log_z, positions_N)
        return [found[name] for name in self.names]

    @torch.no_grad()
    def with_slopes(self, positions_N: Tensor, *hidden_ND: Tensor) -> tuple[list[Tensor], dict[int, list[Tensor]]]:
        """The same without a graph, and by the number of a value that learns its slopes: how it changes with its
        token's hidden state in each branch, [N, D] of the hidden states' dtype.
        """
        every, log_z = self._every(*hidden_ND)
        found = self._of(every, log_z, positions_N)
        slopes: dict[int, list[Tensor]] = {}
        if self.distribution.temperature > 0:
            if "entropy" in self.names and self.entropy_learns:
                towards = (every + found["entropy"][:, None]).mul_(every.exp()).neg_()
                slopes[self.names.index("entropy")] = self._slopes(towards, hidden_ND)
            shares = every.exp_()  # and `every` is gone
            if "log_z" in self.names:
                slopes[self.names.index("log_z")] = self._slopes(shares.clone(), hidden_ND)
            towards = shares.neg_()
            towards.scatter_add_(1, positions_N[:, None], towards.new_ones(len(towards), 1))
            slopes[self.names.index("log_probs")] = self._slopes(towards, hidden_ND)
        return [found[name] for name in self.names], slopes

    def _slopes(self, towards_NV: Tensor, hidden_ND: Sequence[Tensor]) -> list[Tensor]:
        """Of the derivatives by the logits after temperature, which are used up."""
        if self.distribution.temperature != 1:
            towards_NV /= self.distribution.temperature
        pairs = zip(self.distribution.branches, hidden_ND, strict=True)
        return [head_gradient(towards_NV if w == 1 else w * towards_NV, self.rows_VD, h.dtype) for w, h in pairs]

    def _every(self, *hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [N, V] and, if asked for, log Z [N]."""
        if "log_z" in self.names:
            return self.distribution.log_probs_and_log_z(hidden_ND[0], self.rows_VD)
        return self.distribution.log_probs(hidden_ND[0], self.rows_VD, *hidden_ND[1:]), None

    def _of(self, every: Tensor, log_z: Tensor | None, positions_N: Tensor) -> dict[str, Tensor]:
        found = {} if log_z is None else {"log_z": log_z}
        found["log_probs"] = every.gather(-1, positions_N[:, None])[:, 0]
        if "entropy" in self.names:
            found["entropy"] = _entropy(every) if self.entropy_learns else _entropy_alone(every.detach())
        with torch.no_grad():
            if "mean_logits" in self.names:
                found["mean_logits"] = every.mean(-1)
            if "is_top1" in self.names:
                found["is_top1"] = every.argmax(-1) == positions_N
        return found


class _SlopesAhead(torch.autograd.Function):
    """A `_Score` of many tokens under a frozen head, some at a time, and how each of its values changes with its
    token's hidden state.

    A loss multiplies a token's slope by a number and adds up, so slopes [N, D] are all that its gradient needs: neither
    logits [N, V] nor a second product with the head.
    """

    @staticmethod
    def forward(ctx: Any, score: _Score, few: int, positions_N: Tensor, *hidden_ND: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        found: list[list[Tensor]] = []
        slopes: dict[int, list[Tensor]] = {}  # of the values that learn, for each branch
        with torch.autocast(positions_N.device.type, enabled=False):  # as in a backward pass, which is outside of it
            for start in range(0, len(positions_N), few):
                tile = slice(start, start + few)
                values, parts = score.with_slopes(positions_N[tile], *(hidden[tile] for hidden in hidden_ND))
                for number, branches in parts.items():
                    into = slopes.setdefault(number, [torch.empty_like(hidden) for hidden in hidden_ND])
                    for whole, part in zip(into, branches, strict=True):
                        whole[tile] = part
                found.append(values)
        ctx.learn, ctx.branches = list(slopes), len(hidden_ND)
        ctx.save_for_backward(*(slope for each in slopes.values() for slope in each))
        whole_found = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.mark_non_differentiable(*(value for number, value in enumerate(whole_found) if number not in slopes))
        return whole_found

    @staticmethod
    def backward(ctx: Any, *gradients_N: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slopes = ctx.saved_tensors
        found: list[Tensor | None] = [None] * ctx.branches
        for at, number in enumerate(ctx.learn):
            gradient_N = gradients_N[number]
            if gradient_N is None:
                continue
            for branch in range(ctx.branches):
                slope, before = slopes[at * ctx.branches + branch], found[branch]
                part = torch.mul(slope, gradient_N[:, None], out=torch.empty_like(slope))
                found[branch] = part if before is None else before.add_(part)
        return (None, None, None, *found)


def _entropy(log_probs_NV: Tensor) -> Tensor:
    return -(log_probs_NV.exp() * log_probs_NV).sum(-1)


def _entropy_alone(log_probs_NV: Tensor) -> Tensor:
    """Without gradients, some tokens after the other: a product of all of them would stand beside the loss."""
    few = max(1, LOGITS_AT_ONCE // log_probs_NV.shape[-1])
    return torch.cat([_entropy(part) for part in log_probs_NV.split(few)])
