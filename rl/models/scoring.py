"""Log-likelihood of given tokens after given prompts: the other side of the sampler, through the same distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.checks import check_whole
from rl.models.distribution import TokenDistribution
from rl.models.sampling import Stream
from rl.models.unified import UnifiedVLM


def span_log_probs(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    *,
    unconditional: Sequence[Sequence[int]] | None = None,
    max_rows: int = 64,
    free: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Log-probability of each token of span i after prompt i, float32 [len(span)] each, under the active adapter.

    With `free` (`PictureGrammar.free`, for spans of one length) only the tokens that it names are scored: the others
    stand there by rule.

    Token t of a span is predicted at the position before it: the first one by the last token of the prompt.
    Gradients flow unless the caller disables them. Without gradients, a prompt that stands there several times (many
    actions for one pair of pictures) is read once, and equal pairs of prompt and span are scored once.
    """
    check_whole("max_rows", max_rows, least=1)
    if not torch.is_grad_enabled() and not distribution.guided:
        pairs = [(tuple(prompt), tuple(span)) for prompt, span in zip(prompts, spans, strict=True)]
        distinct = list(dict.fromkeys(pairs))
        if len(distinct) < len(pairs):  # a group's equal pictures
            once = span_log_probs(
                vlm,
                [prompt for prompt, _ in distinct],
                [span for _, span in distinct],
                distribution,
                max_rows=max_rows,
                free=free,
            )
            scores = dict(zip(distinct, once, strict=True))
            return [scores[pair] for pair in pairs]
    places = [[t for t in range(len(span)) if free is None or free[t]] for span in spans]
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    if not torch.is_grad_enabled() and not distribution.guided and 2 * len(numbers) <= len(prompts):
        return _after_shared_prompts(vlm, list(numbers), which, spans, places, distribution, 4 * max_rows)
    found: list[Tensor] = []
    for start in range(0, len(prompts), max_rows):
        part = slice(start, start + max_rows)
        hidden = _span_hidden(vlm, prompts[part], spans[part], places[part])
        other = []
        if distribution.guided and unconditional:
            other = [_span_hidden(vlm, unconditional[part], spans[part], places[part])]
        log_probs = distribution.log_probs(hidden, vlm.head_weight(), *other)
        tokens = [span[t] for span, here in zip(spans[part], places[part], strict=True) for t in here]
        ids = torch.tensor(tokens, device=hidden.device)
        flat = log_probs.gather(-1, distribution.positions(ids)[:, None])[:, 0]
        found += flat.split([len(here) for here in places[part]])
    return found


def _after_shared_prompts(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    which: Sequence[int],
    spans: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    max_rows: int,
) -> list[Tensor]:
    """`span_log_probs` with `prompts` distinct and span i after prompt `which[i]`."""
    found: dict[int, Tensor] = {}
    order = sorted(range(len(spans)), key=lambda i: which[i])
    for start in range(0, len(order), max_rows):
        part = order[start : start + max_rows]
        first, last = which[part[0]], which[part[-1]]
        stream = Stream.prefill(vlm, prompts[first : last + 1])
        width = max(len(spans[i]) for i in part)
        # The last token of a span predicts nothing here; padding stands on the right, where nothing sees it.
        ids = torch.tensor([[*spans[i], *[vlm.layout.pad] * (width - len(spans[i]))][: width - 1] for i in part])
        rows = torch.tensor([which[i] - first for i in part], device=vlm.device)
        hidden = stream.rows(rows).read(ids.view(len(part), width - 1).to(vlm.device))
        here = torch.zeros(len(part), width, dtype=torch.bool)
        for row, i in enumerate(part):
            here[row, places[i]] = True
        log_probs = distribution.log_probs(hidden[here.to(vlm.device)], vlm.head_weight())
        tokens = torch.tensor([spans[i][t] for i in part for t in places[i]], device=vlm.device)
        flat = log_probs.gather(-1, distribution.positions(tokens)[:, None])[:, 0]
        found |= dict(zip(part, flat.split([len(places[i]) for i in part]), strict=True))
    return [found[i] for i in range(len(spans))]


def _span_hidden(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
) -> Tensor:
    """Hidden states that predict the spans' tokens at some places, one after the other: float [total places, D]."""
    sequences = [[*prompt, *span] for prompt, span in zip(prompts, spans, strict=True)]
    width = max(len(sequence) for sequence in sequences)
    # Padding stands on the right, where causal attention cannot see it, so no mask is needed.
    ids = torch.tensor([sequence + [vlm.layout.pad] * (width - len(sequence)) for sequence in sequences])
    hidden: Tensor = vlm.hidden_states(ids.to(vlm.device), use_cache=False).last_hidden_state
    rows = [
        row * width + len(prompt) - 1 + t
        for row, (prompt, here) in enumerate(zip(prompts, places, strict=True))
        for t in here
    ]
    return hidden.flatten(0, 1)[torch.tensor(rows, device=hidden.device)]
