"""Refinement of the best candidate: what is drawn anew, by hand with fakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.search.best_of_n import order
from rl.search.refinement import refine, tokens_to_draw
from rl.triplets import Candidate, Scored


def scored(c: Candidate, total: float | None) -> Scored:
    return Scored(c, {"r": total}, total)


def row(ids: list[int]) -> Candidate:
    return Candidate(np.array(ids), np.zeros(len(ids), np.float32), None)  # type: ignore[arg-type]


def test_refinement_keeps_what_the_total_needs_and_draws_the_rest() -> None:
    """The truth is [0, 5, 0, 6]; a right change earns 1, a wrong one costs 1. Place 0 is changed by nobody."""
    source, truth = np.zeros(4, int), np.array([0, 5, 0, 6])

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        gain = lambda ids: float(((ids == truth) & (ids != 0)).sum() - ((ids != truth) & (ids != 0)).sum())  # noqa: E731
        return [scored(c, gain(c.ids)) for c in candidates]

    start = order(judge([0, 0], [row([0, 5, 9, 0]), row([0, 9, 9, 9])]))
    assert tokens_to_draw(judge, [0], [start], [source])[0].tolist() == [False, False, True, True]
    kept: list[list[int]] = []

    def draw_rest(number, numbers, keeps, counts):  # type: ignore[no-untyped-def]
        kept.append([number, *keeps[0].tolist(), counts[0]])
        return [[row([0, 5, 0, 3]), row([0, 5, 0, 6]), row([0, 5, 9, 9])][: counts[0]]]

    limits = {"rounds": 2, "max_candidates": 3}
    (found,) = refine(draw_rest, judge, [start], [source], [16], **limits)  # type: ignore[arg-type]
    assert found.best.candidate.ids.tolist() == truth.tolist()
    # 16 // 2 rounds // 2 free places = 4, at most 3; then both right changes stay.
    assert kept == [[1, 0, 5, -1, -1, 3], [2, 0, 5, -1, 6, 3]]
    assert found.sampled_tokens == 8 + 3 * 2 + 3 * 1
    assert len(found.candidates) == 2 + 3 + 3
    again = refine(draw_rest, judge, [start], [source], [16], good_enough=-1.0, **limits)  # type: ignore[arg-type]
    assert again == [start]
    assert refine(draw_rest, judge, [start], [source], [1], **limits) == [start]  # type: ignore[arg-type]


def test_refinement_asks_how_likely_it_is_what_nobody_drew() -> None:
    """A reward like `fdm_confidence` has no score without log-probabilities, and would keep every change for it."""
    source = np.zeros(3, int)

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        return [scored(c, float(c.logprobs.sum()) if c.logprobs.any() else None) for c in candidates]

    def likely(numbers: Sequence[int], groups: Sequence[Sequence[Candidate]]) -> list[list[np.ndarray]]:
        # Only the change of place 1 is what the model expects.
        worth = np.array([[-1, -2], [-3, -1], [-1, -4]])
        return [[worth[np.arange(3), (c.ids != 0).astype(int)].astype(np.float32) for c in group] for group in groups]

    best = Candidate(np.array([5, 5, 5]), np.full(3, -0.5, np.float32), None)  # type: ignore[arg-type]
    start = order(judge([0], [best]))
    assert tokens_to_draw(judge, [0], [start], [source])[0].tolist() == [False, False, False]
    assert tokens_to_draw(judge, [0], [start], [source], likely)[0].tolist() == [True, False, True]
