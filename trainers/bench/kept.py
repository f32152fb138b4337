"""What is held at once: by a rollout against a copy of the prompt for each candidate, by a reward of many rivals."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch

from rewards import Batch, load_rewards, score
from rl.models.distribution import TokenDistribution
from rl.models.memory import kv_bytes
from rl.models.noise import Noise
from rl.models.roles import InverseDynamics
from rl.models.sampling import sample_tokens
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate
from trainers.bench.measure import Size, peak_bytes
from trainers.bench.mid import ACTIONS, mid_base, random_pictures

WATCHED = 4
"""Tokens after which the peak of a rollout is known: room for all of them is reserved from the start."""


class _EnoughError(Exception):
    pass


class _ShortNoise(Noise):
    """Noise that ends a call after `WATCHED` tokens."""

    def uniform(self, prompt_keys_B: torch.Tensor, candidates_B: torch.Tensor, token: Any) -> torch.Tensor:
        if token == WATCHED:
            raise _EnoughError
        return super().uniform(prompt_keys_B, candidates_B, token)


def ours(size: Size) -> dict[str, Any]:
    """The peak of all tensors that a rollout makes, keys and values and what is beside them."""
    vlm = mid_base(size)
    prompts = [vlm.fdm_prompt(ids, ACTIONS[0]) for ids in random_pictures(vlm, size["prompts"])]
    return {"bytes": rollout_bytes(vlm, prompts, size)}


def rollout_bytes(vlm: UnifiedVLM, prompts: list[list[int]], size: Size) -> int:
    """The same for a model and prompts that there are; it is known after a few tokens."""
    how: Any = {"num_samples": size["candidates"], "max_tokens": size["image_tokens"], "noise": _ShortNoise(0)}

    def rollout() -> None:
        with suppress(_EnoughError):
            sample_tokens(vlm, prompts, TokenDistribution(vlm.layout.image_ids_V), **how)

    return peak_bytes(rollout)


def baseline(size: Size) -> dict[str, Any]:
    """Keys and values alone, by arithmetic, of a row for each candidate that holds prompt and picture."""
    vlm = mid_base(size)
    return {"bytes": copied_bytes(vlm, len(vlm.fdm_prompt(random_pictures(vlm, 1)[0], ACTIONS[0])), size)}


def copied_bytes(vlm: UnifiedVLM, prompt: int, size: Size) -> int:
    """The same for a model that there is and the tokens of a prompt."""
    return size["prompts"] * size["candidates"] * kv_bytes(vlm, prompt + size["image_tokens"])


def margin(size: Size) -> dict[str, Any]:
    """The peak of all tensors that `idm_margin` of a group makes, in rows: keys and values of a pair and an action."""
    return {"rows": margin_rows(mid_base(size), size["candidates"])}


def margin_rows(vlm: UnifiedVLM, count: int) -> float:
    """The same for a model that there is and so many candidates."""
    candidates: list[Any] = [
        Candidate(np.array(ids), np.zeros(len(ids), np.float32), vlm) for ids in random_pictures(vlm, 1 + count)
    ]
    source = candidates.pop()
    rewards = load_rewards(["idm_margin"], InverseDynamics(vlm), ACTIONS[1:])
    batch = Batch([ACTIONS[0]] * len(candidates), candidates, [source] * len(candidates))
    row = kv_bytes(vlm, len(vlm.idm_prompt(source.ids.tolist(), source.ids.tolist())) + 24)
    return peak_bytes(lambda: score(rewards, batch)) / row
