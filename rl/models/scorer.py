"""Log-likelihood of given tokens after given prompts: the other side of the sampler, through the same distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.models.distribution import TokenDistribution
from rl.unified import UnifiedVLM


def span_log_probs(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    *,
    unconditional: Sequence[Sequence[int]] | None = None,
    max_rows: int = 64,
) -> list[Tensor]:
    """Log-probability of each token of span i after prompt i, float32 [len(span)] each, under the active adapter.

    Token t of a span is predicted at the position before it: the first one by the last token of the prompt.
    Gradients flow unless the caller disables them.
    """
    found: list[Tensor] = []
    for start in range(0, len(prompts), max_rows):
        part = slice(start, start + max_rows)
        hidden = _span_hidden(vlm, prompts[part], spans[part])
        other = [_span_hidden(vlm, unconditional[part], spans[part])] if distribution.guided and unconditional else []
        log_probs = distribution.log_probs(hidden, vlm.head_weight(), *other)
        ids = torch.tensor([token for span in spans[part] for token in span], device=hidden.device)
        flat = log_probs.gather(-1, distribution.positions(ids)[:, None])[:, 0]
        found += flat.split([len(span) for span in spans[part]])
    return found


def _span_hidden(vlm: UnifiedVLM, prompts: Sequence[Sequence[int]], spans: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states that predict the spans' tokens, one after the other: float [total tokens, D]."""
    sequences = [[*prompt, *span] for prompt, span in zip(prompts, spans, strict=True)]
    width = max(len(sequence) for sequence in sequences)
    # Padding stands on the right, where causal attention cannot see it, so no mask is needed.
    ids = torch.tensor([sequence + [vlm.layout.pad] * (width - len(sequence)) for sequence in sequences])
    hidden: Tensor = vlm.hidden_states(ids.to(vlm.device), use_cache=False).last_hidden_state
    rows = [
        row * width + len(prompt) - 1 + t
        for row, (prompt, span) in enumerate(zip(prompts, spans, strict=True))
        for t in range(len(span))
    ]
    return hidden.flatten(0, 1)[torch.tensor(rows, device=hidden.device)]
