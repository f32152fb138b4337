"""Refinement: spend part of the samples on what is still wrong with the best candidate, instead of on whole pictures.

Each round keeps the best candidate's tokens where nothing should change or where the judge is content, and draws the
others anew. Both are read off what is there:
- *nothing should change* where no candidate so far has changed the source;
- *the judge is content* with a change if the total falls when the source's tokens are put back in its place.

A kept token is forced, the others are drawn from the model's own distribution given the tokens before them: kept tokens
further on are not seen, so a round draws from an approximation to the model's posterior, and the judge decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rl.errors import RewindError
from rl.search.best_of_n import Judge, Reranked, order, score_once
from rl.triplets import Candidate

DrawRest = Callable[[int, Sequence[int], Sequence[np.ndarray], Sequence[int]], Sequence[Sequence[Candidate]]]
"""`draw_rest(round, sources, kept, counts)`: `counts[i]` candidates of source number `sources[i]` that have the ids of
`kept[i]`, int64 [K], and are drawn where that is -1."""

Likely = Callable[[Sequence[int], Sequence[Sequence[Candidate]]], Sequence[Sequence[np.ndarray]]]
"""`likely(sources, groups)`: log-probability of each token of each candidate, float32 [K], for rewards that ask how
likely a candidate is."""

MAX_PROBES = 16
"""Places at which the source is put back to see what the judge needs; more changes than that are tried in blocks."""


def refine(
    draw_rest: DrawRest,
    judge: Judge,
    starts: Sequence[Reranked],
    sources_NK: Sequence[np.ndarray],
    tokens: Sequence[int],
    *,
    likely: Likely | None = None,
    rounds: int,
    max_candidates: int,
    min_score: float | None = None,
    min_lead: float | None = None,
    good_enough: float | None = None,
) -> list[Reranked]:
    """Improve on the candidates of each source in up to `rounds` rounds.

    Everything drawn so far is scored together after each round, so that totals can be compared whatever the reward.

    Args:
        draw_rest: draws candidates with some tokens kept.
        judge: scores candidates, as for `rerank`.
        starts: each source's candidates, scored.
        sources_NK: int64 [K] each, the sources' image tokens.
        tokens: how many tokens may be sampled for each source in all rounds; a round takes an equal share of the rest.
        likely: how likely the best candidate is with some of the source's tokens put back, for rewards that have no
            score of it without.
        rounds: the most rounds; a source has fewer if nothing is left to draw.
        max_candidates: the most candidates a round, which bounds the time: kept tokens cost a step of the model too.
        min_score, min_lead, good_enough: as for `rerank`; what is good enough is left as it is.

    Returns:
        All candidates of each source, the start's included, with the tokens sampled for all of them.

    Raises:
        RewindError: negative rounds.
    """
    if rounds < 0:
        raise RewindError(f"the rounds of refinement must be 0 or more, not {rounds}")
    found, left = list(starts), list(tokens)
    running = list(range(len(found)))
    for number in range(1, rounds + 1):
        running = [n for n in running if not found[n].reaches(good_enough)]
        free = tokens_to_draw(judge, running, [found[n] for n in running], [sources_NK[n] for n in running], likely)
        counts = {}
        for n, free_K in zip(running, free, strict=True):
            share = left[n] // (rounds + 1 - number)
            counts[n] = min(max_candidates, share // int(free_K.sum())) if free_K.any() else 0
        masks = {n: free_K for n, free_K in zip(running, free, strict=True) if counts[n]}
        running = list(masks)
        if not running:
            break
        kept = [np.where(masks[n], -1, found[n].best.candidate.ids) for n in running]
        fresh = draw_rest(number, running, kept, [counts[n] for n in running])
        groups = [[*(s.candidate for s in found[n].candidates), *new] for n, new in zip(running, fresh, strict=True)]
        for n, scored in zip(running, score_once(judge, running, groups), strict=True):
            cost = counts[n] * int(masks[n].sum())
            left[n] -= cost
            spent, saved = found[n].sampled_tokens + cost, found[n].saved
            found[n] = order(scored, min_score=min_score, min_lead=min_lead, sampled_tokens=spent, saved=saved)
    return found


def tokens_to_draw(
    judge: Judge,
    numbers: Sequence[int],
    found: Sequence[Reranked],
    sources_NK: Sequence[np.ndarray],
    likely: Likely | None = None,
) -> list[np.ndarray]:
    """Where each source's best candidate should be drawn anew, bool [K]: where some candidate changes the source, but
    for the changes of the best that its total needs.
    """
    free, blocks, probes = [], [], []
    for group, source_K in zip(found, sources_NK, strict=True):
        best = group.best.candidate
        free.append((np.stack([s.candidate.ids for s in group.candidates]) != source_K).any(0))
        changed = np.flatnonzero(best.ids != source_K)
        blocks.append(np.array_split(changed, min(MAX_PROBES, len(changed))) if len(changed) else [])
        probes.append([best, *(_put_back(best, block, source_K) for block in blocks[-1])])
    if not any(blocks):
        return free
    found_totals = score_once(judge, numbers, probes)
    unknown = any(group[0].total is not None and any(one.total is None for one in group) for group in found_totals)
    if unknown and likely is not None:
        logprobs = likely(numbers, probes)
        probes = [
            [replace(one, logprobs=x_K) for one, x_K in zip(group, rows, strict=True)]
            for group, rows in zip(probes, logprobs, strict=True)
        ]
        found_totals = score_once(judge, numbers, probes)
    for free_K, places, scored in zip(free, blocks, found_totals, strict=True):
        whole = scored[0].total
        for block, probe in zip(places, scored[1:], strict=True):
            if whole is not None and (probe.total is None or probe.total < whole):
                free_K[block] = False
    return free


def _put_back(candidate: Candidate, block_B: np.ndarray, source_K: np.ndarray) -> Candidate:
    """A candidate with the source's tokens in some places; how likely it is has yet to be asked."""
    ids_K = candidate.ids.copy()
    ids_K[block_B] = source_K[block_B]
    return Candidate(ids_K, np.zeros_like(candidate.logprobs), candidate.backbone, candidate.grid)
