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

RIDGE = 1e-3
"""Times the squared weights (in units of 1 / a term's usual spread within a group): where few triplets tell candidates
apart without a mistake, weights stay finite."""
AT_ONCE = 256
"""Groups whose pairs are held at once."""
FOLDS = 4
FEWEST = 16
"""Groups with something to choose from below which weights would be chance."""


@dataclass(frozen=True)
class Fit:
    """Fitted weights [R], 0 for a term that adds nothing, and the likeness of what the mix chooses.

    `by_n` is the mean likeness of the chosen of n candidates, `held_out` the same of groups that the weights were not
    fitted on (`FOLDS` parts in turns), `alone` of each term by itself, `best` of the most like one of each group. All
    by n, which runs over 1, 2, 4, ... N. `leads`: by how much each term alone chooses better than the held-out mix, in
    the mean over n above 1, and the standard error of that.
    """

    weights: list[float]
    by_n: dict[int, float]
    held_out: dict[int, float]
    alone: list[dict[int, float]]
    best: dict[int, float]
    leads: list[tuple[float, float]]


def fit(terms_SNR: np.ndarray, likeness_SN: np.ndarray) -> Fit:
    """Weights, 0 or more, with which a candidate that is more like the true target has the higher total.

    Logistic loss over the pairs of candidates of each group (RankNet, Burges et al. 2005), a pair weighed by how much
    more like the target the one is. It is convex, so there is one answer, and every pair counts: weights differ less
    between samples than those for which the best of N is best, and choose better (docs/findings/fitted-mix.md). What is
    told by n is the unbiased estimate of best-of-n over all subsets (as `rl.search.best_of_n.expected_best`).

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
    weights_R = _ranked(scaled_SNR, likeness_SN)
    numbers, count = numbers_of(likeness_SN.shape[1]), scaled_SNR.shape[-1]
    fold_S = np.arange(len(likeness_SN)) % FOLDS
    held_SM = np.empty((len(likeness_SN), len(numbers)))
    for fold in range(FOLDS):
        there = fold_S == fold
        totals_SN = scaled_SNR[there] @ _ranked(scaled_SNR[~there], likeness_SN[~there])
        held_SM[there] = _values(totals_SN, likeness_SN[there])
    alone = [_values(scaled_SNR[..., term], likeness_SN) for term in range(count)]

    def by_n(values_SM: np.ndarray) -> dict[int, float]:
        return {n: round(float(value), 4) for n, value in zip(numbers, values_SM.mean(0), strict=True)}

    return Fit(
        [float(f"{w:.4g}") for w in np.divide(weights_R, spread_R, out=np.zeros(count), where=spread_R > 0)],
        by_n(_values(scaled_SNR @ weights_R, likeness_SN)),
        by_n(held_SM),
        [by_n(values_SM) for values_SM in alone],
        by_n(_values(likeness_SN, likeness_SN)),
        [_lead((values_SM - held_SM)[:, 1:].mean(1)) for values_SM in alone],
    )


def _lead(more_S: np.ndarray) -> tuple[float, float]:
    return float(more_S.mean()), float(more_S.std(ddof=1) / np.sqrt(len(more_S)))


def numbers_of(count: int) -> list[int]:
    """1, 2, 4, ... and the number of candidates."""
    return [*(2**k for k in range((count - 1).bit_length())), count] if count > 1 else [1]


def _ranked(scaled_SNR: np.ndarray, likeness_SN: np.ndarray) -> np.ndarray:
    """Weights [R] in units of the terms' spreads, the largest 1.

    Newton's method; a weight that would fall below 0 is held there, the most negative one first. All 0 are no mix: then
    all alike.
    """
    count = scaled_SNR.shape[-1]
    kept = np.arange(count)
    while len(kept):
        weights_K = _minimum(scaled_SNR[..., kept], likeness_SN)
        if weights_K.min() > 0:
            weights_R = np.zeros(count)
            weights_R[kept] = weights_K / weights_K.max()
            return weights_R
        kept = np.delete(kept, int(weights_K.argmin()))
    return np.ones(count)


def _minimum(scaled_SNK: np.ndarray, likeness_SN: np.ndarray) -> np.ndarray:
    """Where the loss of these terms is least, of either sign."""
    weights_K = np.zeros(scaled_SNK.shape[-1])
    value, slope_K, curve_KK = _loss(weights_K, scaled_SNK, likeness_SN)
    for _ in range(50):
        step_K = np.linalg.solve(curve_KK, slope_K)
        length = 1.0
        while (tried := _loss(weights_K - length * step_K, scaled_SNK, likeness_SN))[0] > value and length > 1e-6:
            length /= 2
        if value - tried[0] < 1e-12:
            break
        weights_K = weights_K - length * step_K
        value, slope_K, curve_KK = tried
    return weights_K


def _loss(
    weights_K: np.ndarray, scaled_SNK: np.ndarray, likeness_SN: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean loss of a pair, its slope [K] and its curvature [K, K]."""
    value, total = 0.0, 0.0
    slope_K, curve_KK = np.zeros(len(weights_K)), np.zeros((len(weights_K),) * 2)
    for begin in range(0, len(likeness_SN), AT_ONCE):
        terms_SNK, likeness = scaled_SNK[begin : begin + AT_ONCE], likeness_SN[begin : begin + AT_ONCE]
        more_SNN = likeness[:, :, None] - likeness[:, None, :]
        better = np.nonzero(more_SNN > 0)
        more_P = more_SNN[better]
        lead_PK = terms_SNK[better[0], better[1]] - terms_SNK[better[0], better[2]]
        lead_P = lead_PK @ weights_K
        wrong_P = 1 / (1 + np.exp(np.clip(lead_P, -500, 500)))
        value += float((more_P * np.logaddexp(0, -lead_P)).sum())
        slope_K -= (more_P * wrong_P) @ lead_PK
        curve_KK += (lead_PK * (more_P * wrong_P * (1 - wrong_P))[:, None]).T @ lead_PK
        total += float(more_P.sum())
    ridge = RIDGE * weights_K
    return (
        value / total + float(ridge @ weights_K) / 2,
        slope_K / total + ridge,
        curve_KK / total + RIDGE * np.eye(len(weights_K)),
    )


def _values(totals_SN: np.ndarray, likeness_SN: np.ndarray) -> np.ndarray:
    """Expected likeness of the best of n by total, [S, n of `numbers_of`]; among equal totals the first counts."""
    count = likeness_SN.shape[1]
    order = np.argsort(-totals_SN, axis=1, kind="stable")
    return np.take_along_axis(likeness_SN, order, 1) @ _chances(count)  # type: ignore[no-any-return]


def _chances(count: int) -> np.ndarray:
    """By rank, the share of subsets of n in which that rank is the best: C(N - 1 - i, n - 1) / C(N, n), [N, n]."""
    return np.array([[comb(count - 1 - i, n - 1) / comb(count, n) for n in numbers_of(count)] for i in range(count)])
