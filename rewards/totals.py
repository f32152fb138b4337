"""The weighted sum of rewards: one total a candidate, or none where a term is unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewards.contract import Batch, Reward
from rl.pictures import Picture
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
    found = [
        Scored(candidate, {name: scores[number] for name, scores in by_name.items()}, None)
        for number, candidate in enumerate(batch.candidates)
    ]
    if not normalise:
        return summed(rewards, found)
    for numbers in groups_of(batch.prompts, batch.source_image):
        for number, one in zip(numbers, normalised(rewards, [found[n] for n in numbers]), strict=True):
            found[number] = one
    return found


def summed(rewards: Sequence[Reward], scored: Sequence[Scored]) -> list[Scored]:
    """The same candidates and scores by name, with the weighted sum as total."""
    return _with_totals(rewards, scored, lambda terms_RB: terms_RB)


def normalised(rewards: Sequence[Reward], group: Sequence[Scored]) -> list[Scored]:
    """The same candidates and scores by name, with the sum of normalised terms as total (see `score`).

    Args:
        rewards: with their weights.
        group: candidates that are compared with each other, repeated ones included, as they count in GRPO.
    """
    return _with_totals(rewards, group, _normalised)


def _with_totals(
    rewards: Sequence[Reward], scored: Sequence[Scored], change: Callable[[np.ndarray], np.ndarray]
) -> list[Scored]:
    """Totals of what every counted reward knows, [reward, candidate], after a change of these terms."""
    counted = [reward for reward in rewards if reward.weight != 0]
    known = [all(one.scores[reward.name] is not None for reward in counted) for one in scored]
    terms = [[one.scores[r.name] for one, is_known in zip(scored, known, strict=True) if is_known] for r in counted]
    terms_RB = change(np.array(terms, dtype=float).reshape(len(counted), sum(known)))
    totals_B = sum((r.weight * row_B for r, row_B in zip(counted, terms_RB, strict=True)), np.zeros(sum(known)))
    totals = iter(totals_B.tolist())
    return [
        Scored(one.candidate, one.scores, next(totals) if is_known else None)
        for one, is_known in zip(scored, known, strict=True)
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
