"""How well scores rank candidates: the area under the ROC curve, and what choosing the best of N by them gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl.evaluation.intervals import paired_difference

Estimate = Callable[[Sequence[float | None], Sequence[float], int], float]
"""`(scores, values, n)` -> expected value of the best of n (`rl.search.best_of_n.expected_best`)."""


def auc(scores_N: np.ndarray, right_N: np.ndarray) -> float:
    """Chance that a right candidate scores above a wrong one; ties count half, NaN where there are not both.

    `scores_N` is float, NaN where there is no score; `right_N` is bool.
    """
    known = np.isfinite(scores_N)
    good, bad = scores_N[right_N & known], scores_N[~right_N & known]
    if not len(good) or not len(bad):
        return float("nan")
    return float((good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean())


def selection(scores_SG: np.ndarray, right_SG: np.ndarray, estimate: Estimate, most: int) -> dict[str, Any]:
    """What more selection by a score gives: is the best of many still right more often, or is the score gamed?

    Args:
        scores_SG: scores [scenes, candidates], NaN where there is none.
        right_SG: what an oracle says of each, bool [scenes, candidates].
        estimate: as `Estimate`.
        most: the largest N of the curve, at most the number of candidates.

    Returns:
        `by_score` and `by_oracle`, success of the best of 1, 2, 4, ... and `most`; `within_group_auc` (mean over scenes
        with both kinds, absent if there is none); `from`, `to` and `gain`, the paired difference of success between the
        last N and a quarter of it with its 95 % interval; `verdict`.
    """
    numbers = sorted({*(2**k for k in range(most.bit_length())), most})
    scores = [[None if np.isnan(x) else float(x) for x in row] for row in scores_SG]
    right = right_SG.astype(float).tolist()
    curve = {n: np.array([estimate(s, r, n) for s, r in zip(scores, right, strict=True)]) for n in numbers}
    last, before = most, max([n for n in numbers if 4 * n <= most], default=1)
    areas = np.array([auc(s, r) for s, r in zip(scores_SG, right_SG, strict=True)])
    gain = paired_difference(curve[last], curve[before])
    found: dict[str, Any] = {
        "by_score": {str(n): float(values.mean()) for n, values in curve.items()},
        "by_oracle": {str(n): float(np.mean([estimate(r, r, n) for r in right])) for n in numbers},
        "scenes": len(scores),
        "from": before,
        "to": last,
        "gain": list(gain),
        "verdict": _verdict(curve[1].mean(), before, last, gain),
    }
    if np.isfinite(areas).any():
        found["within_group_auc"] = float(np.nanmean(areas))
    return found


def _verdict(start: float, before: int, last: int, gain: tuple[float, float, float]) -> str:
    mean, low, high = (100 * x for x in gain)
    told = f"{mean:+.1f} points of success ({low:+.1f} to {high:+.1f}) from best of {before} to best of {last}"
    if last == before:
        return "only one candidate a scene: nothing is selected"
    if low > 0:
        return f"more selection still helps: {told}, and {100 * start:.1f} % without selection"
    if high < 0:
        return f"the reward is gamed: {told}; use no more than {before} candidates, or add a term"
    return f"more selection is not shown to help: {told}"
