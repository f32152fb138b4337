"""Best of N (arXiv 2506.06006, inference-time verification): draw candidates, score them, keep the best.

`draw` and `judge` are functions, so that any model and any reward fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rl.errors import RewindError
from rl.triplets import Candidate, Scored

Draw = Callable[[Sequence[int], int, int], Sequence[Sequence[Candidate]]]
"""`draw(sources, first, count)`: candidates number `first` to `first + count - 1` of each source (by number)."""
Judge = Callable[[Sequence[int], Sequence[Candidate]], Sequence[Scored]]
"""`judge(sources, candidates)`: one `Scored` a candidate, in order; candidate i is of source number `sources[i]`."""
Totals = Callable[[Sequence[Scored]], Sequence[Scored]]
"""`totals(scored)`: candidates that are compared with each other, with totals that may depend on all of them."""


@dataclass(frozen=True, eq=False)
class Reranked:
    """Candidates from best to worst, those that cannot be scored last.

    `lead` is the best total minus that of the best *other* picture (0 if all are alike or only one can be scored);
    `abstained` is True if nothing could be scored or a threshold was missed: then better trust no candidate.
    `sampled_tokens` is what drawing them cost; `saved` how many candidates an early stop did without.
    """

    candidates: list[Scored]
    lead: float
    abstained: bool
    sampled_tokens: int = 0
    saved: int = 0

    @property
    def best(self) -> Scored:
        """The candidate with the highest total; ties go to the likelier picture."""
        return self.candidates[0]

    def reaches(self, good_enough: float | None) -> bool:
        """Whether the best total is at least `good_enough` and nothing speaks for abstaining."""
        total = self.best.total
        return good_enough is not None and not self.abstained and total is not None and total >= good_enough


def rerank(
    draw: Draw,
    judge: Judge,
    num_sources: int = 1,
    num_candidates: int = 8,
    *,
    min_score: float | None = None,
    min_lead: float | None = None,
    good_enough: float | None = None,
    totals: Totals | None = None,
) -> list[Reranked]:
    """Draw candidates for each source, score them and put the best first.

    With `good_enough`, 1, 2, 4, 8, ... candidates are drawn, and all of a source's are scored together each time (a
    reward may compare them with each other), until the best is good enough. So a source that stops at n has
    exactly what `num_candidates=n` gives, draws at most twice what it needs and scores at most twice what it draws.

    Args:
        draw: gives candidates of some sources.
        judge: scores candidates; it sees every distinct picture of a source once, and all of them in one call.
        num_sources: sources are known by their numbers 0 .. num_sources - 1.
        num_candidates: the most candidates a source.
        min_score: abstain if the best total is below it.
        min_lead: abstain if the lead is below it.
        good_enough: stop at a total of this or more, unless the lead says to abstain.
        totals: gives all candidates of a source, repeated ones too, other totals than the judge did.

    Returns:
        One `Reranked` a source.

    Raises:
        RewindError: no candidate.
    """
    groups: list[list[Candidate]] = [[] for _ in range(num_sources)]
    found: dict[int, Reranked] = {}
    running, drawn = list(range(num_sources)), 0
    for target in _targets(num_candidates, good_enough is not None):
        for number, fresh in zip(running, draw(running, drawn, target - drawn), strict=True):
            groups[number] += fresh
        drawn = target
        judged = score_once(judge, running, [groups[n] for n in running])
        for number, one in zip(running, judged, strict=True):
            scored = one if totals is None else totals(one)
            found[number] = order(scored, min_score=min_score, min_lead=min_lead, saved=num_candidates - drawn)
        running = [number for number in running if not found[number].reaches(good_enough)]
        if not running:
            break
    return [found[number] for number in range(num_sources)]


def _targets(num_candidates: int, early_stop: bool) -> Iterator[int]:
    """How many candidates there are after each draw."""
    target = 1 if early_stop else num_candidates
    while target < num_candidates:
        yield target
        target *= 2
    yield num_candidates


def score_once(judge: Judge, sources: Sequence[int], groups: Sequence[Sequence[Candidate]]) -> list[list[Scored]]:
    """A `Scored` for each candidate of each source; equal pictures of a source are scored once."""
    keys = [[(n, c.ids.tobytes()) for c in group] for n, group in zip(sources, groups, strict=True)]
    firsts: dict[tuple[int, bytes], Candidate] = {}
    for row, group in zip(keys, groups, strict=True):
        for key, candidate in zip(row, group, strict=True):
            firsts.setdefault(key, candidate)
    judged = judge([number for number, _ in firsts], list(firsts.values()))
    by_key = dict(zip(firsts, judged, strict=True))
    return [
        [Scored(c, by_key[key].scores, by_key[key].total) for key, c in zip(row, group, strict=True)]
        for row, group in zip(keys, groups, strict=True)
    ]


def order(
    scored: Sequence[Scored],
    *,
    min_score: float | None = None,
    min_lead: float | None = None,
    sampled_tokens: int | None = None,
    saved: int = 0,
) -> Reranked:
    """The candidates of one source from best to worst; arguments as for `rerank`.

    Raises:
        RewindError: no candidate.
    """
    if not scored:
        raise RewindError("there is no candidate to choose from")
    ranked = sorted(scored, key=lambda s: (s.total is not None, s.total or 0.0, s.candidate.logprob), reverse=True)
    distinct = {s.candidate.ids.tobytes(): s.total for s in scored if s.total is not None}
    totals = sorted(distinct.values(), reverse=True)
    lead = totals[0] - totals[1] if len(totals) > 1 else 0.0
    abstained = not totals or (min_score is not None and totals[0] < min_score)
    abstained = abstained or (min_lead is not None and lead < min_lead)
    if sampled_tokens is None:
        sampled_tokens = sum(len(s.candidate.ids) for s in scored)
    return Reranked(ranked, lead, abstained, sampled_tokens, saved)


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
