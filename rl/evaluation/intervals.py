"""Intervals: how sure a figure is, for shares, and for differences on the same test cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.errors import RewindError

Z95 = 1.959963984540054


def wilson(successes: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927): honest near 0 and 1 too.

    Raises:
        RewindError: no cases.
    """
    if total < 1:
        raise RewindError("an interval needs at least one case")
    p, z2 = successes / total, Z95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * np.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def paired_difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of two systems on the same cases and its 95 % interval, by bootstrap of the cases.

    Raises:
        RewindError: lengths that differ, or no cases.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    if len(ours) != len(theirs) or not len(ours):
        raise RewindError(f"{len(ours)} and {len(theirs)} cases cannot be paired")
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(difference))
    means = np.concatenate(
        [
            difference[rng.integers(len(difference), size=(min(rows, draws - start), len(difference)))].mean(1)
            for start in range(0, draws, rows)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
