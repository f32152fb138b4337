"""The weighted sum of rewards: one total a candidate, or none where a term is unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.contract import Batch, Reward
from rl.images import Picture
from rl.triplets import Scored

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL: a group that is all alike gives 0."""


def score(rewards: Sequence[Reward], batch: Batch, normalise: bool = False) -> list[Scored]:
    """Every candidate with its scores by name and their weighted sum.

    A candidate for which a reward with a weight other than 0 gives None has no total (None): it cannot be scored.

    Args:
        rewards: with their weights; a weight of 0 is only watched.
        batch: the candidates, whole groups of them.
        normalise: before summing, turn each term into its distance from its group's mean in standard deviations, so
            that weights mean the same whatever the terms' ranges are (arXiv 2601.05242; GRPO has the same as TRL's
            `multi_objective_aggregation="normalize_then_sum"`). Scores by name stay as they are.
    """
    by_name = {reward.name: reward(batch) for reward in rewards}
    counted = [reward for reward in rewards if reward.weight != 0]
    count = len(batch.candidates)
    terms_RB = np.array([by_name[reward.name] for reward in counted], dtype=float).reshape(len(counted), count)
    known_B = ~np.isnan(terms_RB).any(0)
    if normalise:
        for numbers in groups_of(batch.prompts, batch.source_image):
            inside = [number for number in numbers if known_B[number]]
            terms_RB[:, inside] = _normalised(terms_RB[:, inside])
    totals_B = sum((r.weight * terms_B for r, terms_B in zip(counted, terms_RB, strict=True)), np.zeros(count))
    return [
        Scored(candidate, {name: scores[n] for name, scores in by_name.items()}, float(total) if known else None)
        for n, (candidate, total, known) in enumerate(zip(batch.candidates, totals_B, known_B, strict=True))
    ]


def groups_of(prompts: Sequence[str], source_image: Sequence[Picture]) -> list[list[int]]:
    """Numbers of the candidates of each group: the same source picture and the same action."""
    groups: dict[tuple[int, str], list[int]] = {}
    for number, (action, source) in enumerate(zip(prompts, source_image, strict=True)):
        groups.setdefault((id(source), action), []).append(number)
    return list(groups.values())


def _normalised(terms_RG: np.ndarray) -> np.ndarray:
    if terms_RG.shape[1] < 2:
        return np.zeros_like(terms_RG)
    centred = terms_RG - terms_RG.mean(1, keepdims=True)
    return centred / (terms_RG.std(1, ddof=1, keepdims=True) + EPSILON)
