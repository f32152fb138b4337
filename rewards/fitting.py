"""Weights of a mix of rewards for choosing among candidates, fitted from labelled triplets alone.

One term is rarely enough. An inverse model says whether the action shows, and hardly minds damage; what changes beyond
need says nothing of the action; the forward model's own likelihood knows which pictures are odd, and likes what it
always does. Their weighted sum is a noisy channel, log p(a | s, t) + lambda log p(t | s, a), and a charge for damage.
How much each is to be trusted depends on how well the two models have learned, so it is measured: of candidates drawn
for labelled triplets, how like the true target is the one that a mix would choose?

The true target itself is no example. It differs from drawn pictures in ways that no term should learn (noise that no
model draws, likelihood that no sample has): weights that put it above the candidates choose worse among them
(docs/findings/fitted-mix.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from rl.errors import RewindError

GRID = (0.0, 0.03, 0.06, 0.1, 0.18, 0.3, 0.56, 1.0, 1.8, 3.0, 5.6, 10.0, 18.0, 30.0)
"""Weights that are tried, in units of 1 / a term's usual spread within a group; about 5 dB apart."""
SWEEPS = 6
"""Rounds over the terms at most; two or three settle it."""
FOLDS = 4
FEWEST = 16
"""Groups with something to choose from below which weights would be chance."""


@dataclass(frozen=True)
class Fit:
    """Fitted weights [R], 0 for a term that adds nothing, and the likeness of what the mix chooses.

    `by_n` is the mean likeness of the chosen of n candidates, `held_out` the same of groups that the weights were not
    fitted on (`FOLDS` parts in turns), `alone` of each term by itself, `best` of the most like one of each group. All
    by n, which runs over 1, 2, 4, ... N.
    """

    weights: list[float]
    by_n: dict[int, float]
    held_out: dict[int, float]
    alone: list[dict[int, float]]
    best: dict[int, float]


def fit(terms_SNR: np.ndarray, likeness_SN: np.ndarray) -> Fit:
    """Weights with which the best of n candidates, n = 2, 4, ... N in the mean, is most like the true target.

    Cyclic coordinate ascent over `GRID`, from each term alone and from all alike; the value is the unbiased estimate of
    best-of-n over all subsets (as `rl.search.best_of_n.expected_best`), so that every candidate counts.

    Args:
        terms_SNR: scores, float [source, candidate, term], finite.
        likeness_SN: likeness of each candidate to its true target, 0 to 1.

    Raises:
        RewindError: fewer than `FEWEST` sources whose candidates differ in likeness.
    """
    differ = int((np.ptp(likeness_SN, axis=1) > 0).sum())
    if differ < FEWEST:
        raise RewindError(
            f"{differ} of {len(likeness_SN)} triplets have candidates that are not all equally like the true target, "
            f"and a mix needs {FEWEST}: give more labelled triplets, or draw more candidates"
        )
    spread_R = np.sqrt(((terms_SNR - terms_SNR.mean(1, keepdims=True)) ** 2).mean((0, 1)))
    scaled_SNR = terms_SNR / np.where(spread_R > 0, spread_R, np.inf)
    weights_R = _ascend(scaled_SNR, likeness_SN)
    fold_S = np.arange(len(likeness_SN)) % FOLDS
    held: list[np.ndarray] = []
    for fold in range(FOLDS):
        there = fold_S == fold
        totals_SN = scaled_SNR[there] @ _ascend(scaled_SNR[~there], likeness_SN[~there])
        held.append(_values(totals_SN, likeness_SN[there]))
    numbers, count = numbers_of(likeness_SN.shape[1]), scaled_SNR.shape[-1]

    def by_n(values_SM: np.ndarray) -> dict[int, float]:
        return {n: round(float(value), 4) for n, value in zip(numbers, values_SM.mean(0), strict=True)}

    return Fit(
        [float(f"{w:.4g}") for w in np.divide(weights_R, spread_R, out=np.zeros(count), where=spread_R > 0)],
        by_n(_values(scaled_SNR @ weights_R, likeness_SN)),
        by_n(np.concatenate(held)),
        [by_n(_values(scaled_SNR[..., term], likeness_SN)) for term in range(count)],
        by_n(_values(likeness_SN, likeness_SN)),
    )


def numbers_of(count: int) -> list[int]:
    """1, 2, 4, ... and the number of candidates."""
    return [*(2**k for k in range((count - 1).bit_length())), count] if count > 1 else [1]


def _ascend(scaled_SNR: np.ndarray, likeness_SN: np.ndarray) -> np.ndarray:
    """Weights [R] in units of the terms' spreads, the largest 1."""
    count = scaled_SNR.shape[-1]
    starts = [np.ones(count), *np.eye(count)] if count > 1 else [np.ones(1)]
    found = [_from(start, scaled_SNR, likeness_SN) for start in starts]
    best = max(found, key=lambda one: one[0])[1]
    return best / best.max()


def _from(weights_R: np.ndarray, scaled_SNR: np.ndarray, likeness_SN: np.ndarray) -> tuple[float, np.ndarray]:
    weights_R = weights_R.copy()
    value = _value(scaled_SNR @ weights_R, likeness_SN)
    for _ in range(SWEEPS if len(weights_R) > 1 else 0):
        before = value
        for term in range(len(weights_R)):
            rest_SN = scaled_SNR @ np.where(np.arange(len(weights_R)) == term, 0.0, weights_R)
            scale = np.delete(weights_R, term).max()
            for weight in GRID if scale > 0 else ():
                tried = _value(rest_SN + scale * weight * scaled_SNR[..., term], likeness_SN)
                if tried > value + 1e-9:
                    value, weights_R[term] = tried, scale * weight
        if value <= before:
            break
    return value, weights_R


def _value(totals_SN: np.ndarray, likeness_SN: np.ndarray) -> float:
    return float(_values(totals_SN, likeness_SN)[:, 1:].mean())


def _values(totals_SN: np.ndarray, likeness_SN: np.ndarray) -> np.ndarray:
    """Expected likeness of the best of n by total, [S, n of `numbers_of`]; among equal totals the first counts."""
    count = likeness_SN.shape[1]
    order = np.argsort(-totals_SN, axis=1, kind="stable")
    return np.take_along_axis(likeness_SN, order, 1) @ _chances(count)  # type: ignore[no-any-return]


def _chances(count: int) -> np.ndarray:
    """By rank, the share of subsets of n in which that rank is the best: C(N - 1 - i, n - 1) / C(N, n), [N, n]."""
    return np.array([[comb(count - 1 - i, n - 1) / comb(count, n) for n in numbers_of(count)] for i in range(count)])
