"""`generate` at 7B's size on one GPU, with each of its caches: what our sampler is compared with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from rl.models.families.chameleon import ChameleonVLM
from trainers.bench import sampler
from trainers.bench.measure import Size, seconds
from trainers.bench.mid import ACTIONS, random_pictures

WARM_TOKENS = 8
"""Tokens that are drawn before something is measured, so that nothing is compiled meanwhile."""
Found = dict[str, Any]


class Enough(StoppingCriteria):
    """Ends `generate` at a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done = input_ids.shape[1] >= self.length
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


def prompts_of(vlm: ChameleonVLM, size: Size) -> list[list[int]]:
    """Prompts with random sources."""
    sources = random_pictures(vlm, size["prompts"])
    return [vlm.fdm_prompt(ids, ACTIONS[n % len(ACTIONS)]) for n, ids in enumerate(sources)]


def measure_generate(vlm: ChameleonVLM, size: Size, cache: str) -> Found:
    """`generate` with one of its caches, as many prompts at once as fit."""
    kind = type(vlm.model)
    try:
        return {"raw": generate(vlm, prompts_of(vlm, size), size, cache)}
    finally:
        vlm.model.__class__ = kind


def generate(vlm: ChameleonVLM, prompts: list[list[int]], size: Size, cache: str) -> Found:
    """Seconds of `generate`; out of memory it takes half as many prompts at once."""
    at_once = len(prompts)
    enough = StoppingCriteriaList([Enough(max(map(len, prompts)) + WARM_TOKENS)])
    while True:
        parts = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
        try:
            sampler.generate(vlm, parts[0], size, cache, stopping_criteria=enough)
            found = seconds(lambda parts=parts: [sampler.generate(vlm, p, size, cache) for p in parts], 1, warm=0)  # type: ignore[misc]
            return {"seconds": found[0], "prompts_at_once": at_once}
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
        at_once //= 2
        torch.cuda.empty_cache()
