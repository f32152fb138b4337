"""Many actions for one pair of pictures, or many targets of one source: a prompt that is read once against one row for
each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl.models.distribution import TokenDistribution
from rl.models.opening import load_base
from rl.models.scoring import span_log_probs
from rl.models.unified import UnifiedVLM
from trainers.bench.measure import Size, seconds
from trainers.bench.mid import ACTIONS, mid_base, random_pictures

ROWS = 64
"""Rows that the baseline reads at once."""


def ours(size: Size) -> dict[str, Any]:
    vlm, prompts, spans = setting(size)
    limit = rows_tokens(prompts, spans) / (rows_tokens([prompts[0]], []) + rows_tokens([], spans))
    return {"seconds": seconds(lambda: shared(vlm, prompts, spans), size["repeats"]), "limit": limit}


def baseline(size: Size) -> dict[str, Any]:
    vlm, prompts, spans = setting(size)
    return {"seconds": seconds(lambda: one_row_each(vlm, prompts, spans), size["repeats"])}


def setting(size: Size) -> tuple[UnifiedVLM, list[list[int]], list[list[int]]]:
    """The shipped base, and as many different actions for each of some random pairs of pictures; with `image_tokens`, a
    base for such pictures and the targets of one source.
    """
    if "image_tokens" in size:
        mid = mid_base(size)
        source, *targets = random_pictures(mid, 1 + size["targets"])
        return mid, [mid.fdm_prompt(source, ACTIONS[0])] * len(targets), [mid.target_span(ids) for ids in targets]
    vlm = load_base("tabletop-chameleon")
    codes = torch.randint(len(vlm.layout.image_ids_V), (size["pairs"], 2, vlm.layout.tokens_per_image))
    pairs = vlm.layout.image_ids_V[codes].tolist()
    actions = [f"{ACTIONS[n % len(ACTIONS)]} and {n}" for n in range(size["actions"])]
    prompts = [vlm.idm_prompt(source, target) for source, target in pairs for _ in actions]
    return vlm, prompts, [vlm.action_ids(words) for _ in pairs for words in actions]


def rows_tokens(prompts: list[list[int]], spans: list[list[int]]) -> int:
    """Tokens that are read."""
    return sum(map(len, [*prompts, *spans]))


def distribution_of(vlm: UnifiedVLM, spans: list[list[int]]) -> TokenDistribution:
    """Of image tokens for targets, of text tokens for actions."""
    images = vlm.layout.image_ids_V
    return TokenDistribution(images if spans[0][0] in set(images.tolist()) else vlm.layout.text_ids_V)


@torch.no_grad()
def shared(vlm: UnifiedVLM, prompts: list[list[int]], spans: list[list[int]]) -> list[Tensor]:
    """Log-probabilities of each span after its prompt by our scorer."""
    return span_log_probs(vlm, prompts, spans, distribution_of(vlm, spans))


@torch.no_grad()
def one_row_each(vlm: UnifiedVLM, prompts: list[list[int]], spans: list[list[int]]) -> list[Tensor]:
    """The same with prompt and span in a row of their own, padded on the right; logits where spans are."""
    allowed = distribution_of(vlm, spans).allowed_ids_V
    head = vlm.head_weight()[allowed]
    found: list[Tensor] = []
    for start in range(0, len(prompts), ROWS):
        part = list(zip(prompts[start : start + ROWS], spans[start : start + ROWS], strict=True))
        width = max(len(prompt) + len(span) for prompt, span in part)
        rows = [[*prompt, *span, *[vlm.layout.pad] * (width - len(prompt) - len(span))] for prompt, span in part]
        hidden = vlm.hidden_states(torch.tensor(rows, device=vlm.device), use_cache=False).last_hidden_state
        here = torch.zeros(len(part), width, dtype=torch.bool)
        for row, (prompt, span) in enumerate(part):
            here[row, len(prompt) - 1 : len(prompt) + len(span) - 1] = True
        log_probs = (hidden[here.to(hidden.device)] @ head.T).float().log_softmax(-1)
        tokens = torch.searchsorted(allowed, torch.tensor([token for _, span in part for token in span]))
        chosen = log_probs.gather(-1, tokens.to(log_probs.device)[:, None])[:, 0]
        found += chosen.split([len(span) for _, span in part])
    return found
