"""Stratified selection of IDM-labelled triplets (arXiv 2506.06006): high scores, and every class alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from rl.errors import RewindError


def select_stratified(
    scores: Sequence[float] | np.ndarray, classes: Sequence[Hashable] | np.ndarray, k: int
) -> np.ndarray:
    """Indices int64 [min(k, N)] of the chosen entries, in the order of choice.

    Round-robin over the classes (in sorted order), each time the class's best unused entry, until k are taken. Equal
    scores keep their order.

    Raises:
        RewindError: k below 1, lengths that differ, a score that is no number.
    """
    found = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(classes)
    if found.shape != labels.shape or found.ndim != 1:
        raise RewindError(f"{found.shape} scores and {labels.shape} classes do not fit together")
    if k < 1:
        raise RewindError(f"k must be at least 1, not {k}")
    if not np.isfinite(found).all():
        raise RewindError(f"entry {int(np.flatnonzero(~np.isfinite(found))[0])} has no finite score to be selected by")
    _, codes = np.unique(labels, return_inverse=True)
    order = np.lexsort((-found, codes))  # by class, best first; lexsort is stable
    sorted_codes = codes[order]
    starts = np.flatnonzero(np.r_[True, sorted_codes[1:] != sorted_codes[:-1]]) if len(order) else np.zeros(0, int)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    turn = np.lexsort((sorted_codes, rank))  # first everybody's best, then everybody's second best, ...
    chosen: np.ndarray = order[turn[:k]]
    return chosen
