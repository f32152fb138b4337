"""Best of N (arXiv 2506.06006, inference-time verification): draw candidates, score them, keep the best.

`draw` and `judge` are functions, so that any model and any reward fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rl.errors import RewindError
from rl.triplets import Candidate, Scored


@dataclass(frozen=True, eq=False)
class Reranked:
    """Candidates from best to worst, those that cannot be scored last.

    `lead` is the best total minus that of the best *other* picture (0 if all are alike or only one can be scored);
    `abstained` is True if nothing could be scored or a threshold was missed: then better trust no candidate.
    """

    candidates: list[Scored]
    lead: float
    abstained: bool

    @property
    def best(self) -> Scored:
        """The candidate with the highest total; ties go to the likelier picture."""
        return self.candidates[0]


def rerank(
    draw: Callable[[], Sequence[Candidate]],
    judge: Callable[[Sequence[Candidate]], Sequence[Scored]],
    *,
    min_score: float | None = None,
    min_lead: float | None = None,
) -> Reranked:
    """Score drawn candidates and order them.

    Args:
        draw: gives the candidates of one source.
        judge: scores candidates, one `Scored` each, in order; it sees every distinct picture once.
        min_score: abstain if the best total is below it.
        min_lead: abstain if the lead is below it.

    Raises:
        RewindError: no candidate.
    """
    drawn = list(draw())
    if not drawn:
        raise RewindError("there is no candidate to choose from")
    first: dict[bytes, int] = {}
    keys = [np.ascontiguousarray(candidate.ids).tobytes() for candidate in drawn]
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    judged = judge([drawn[number] for number in first.values()])
    by_key = dict(zip(first, judged, strict=True))
    scored = [
        Scored(candidate, by_key[key].scores, by_key[key].total) for candidate, key in zip(drawn, keys, strict=True)
    ]
    scored.sort(key=lambda s: (s.total is not None, s.total or 0.0, s.candidate.logprob), reverse=True)
    totals = sorted((s.total for s in by_key.values() if s.total is not None), reverse=True)
    lead = totals[0] - totals[1] if len(totals) > 1 else 0.0
    abstained = not totals or (min_score is not None and totals[0] < min_score)
    abstained = abstained or (min_lead is not None and lead < min_lead)
    return Reranked(scored, lead, abstained)


def expected_best(scores_N: Sequence[float | None], values_N: Sequence[float], n: int) -> float:
    """Unbiased estimate of the value of best-of-n from N >= n candidates: the mean over all subsets of size n.

    With the candidates ordered by score, the i-th best (from 0) is the best of C(N - 1 - i, n - 1) of the C(N, n)
    subsets. Candidates of equal score (unscorable ones count as lowest) share their chance evenly.
    """
    total = len(scores_N)
    if not 1 <= n <= total or len(values_N) != total:
        raise RewindError(f"best of {n} cannot be estimated from {total} scores and {len(values_N)} values")
    scores = np.array([-np.inf if score is None else score for score in scores_N])
    order = np.argsort(-scores, kind="stable")
    chance = np.zeros(total)
    share = n / total  # C(N - 1, n - 1) / C(N, n)
    for rank in range(total - n + 1):
        chance[rank] = share
        share *= (total - n - rank) / (total - 1 - rank) if rank < total - 1 else 0.0
    values = np.asarray(values_N, dtype=float)[order]
    ranked = scores[order]
    found, start = 0.0, 0
    while start < total:
        stop = start + int(np.searchsorted(-ranked[start:], -ranked[start], side="right"))
        found += chance[start:stop].sum() * values[start:stop].mean()
        start = stop
    return float(found)
