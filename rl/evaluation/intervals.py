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
    if len(ours) != len(theirs) or not len(ours):
        raise RewindError(f"{len(ours)} and {len(theirs)} cases cannot be paired")
    return mean_of_runs([np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)], draws, seed)


def mean_of_runs(
    differences: Sequence[Sequence[float] | np.ndarray], draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over runs of each run's mean difference and its 95 % interval, by bootstrap of the cases within each run.

    It says how sure the mean of *these* runs is; with few runs, what another seed would give can lie outside.

    Args:
        differences: case by case, one list a run; a run's length is its own.

    Raises:
        RewindError: no runs, or one without cases.
    """
    if not differences or not all(len(cases) for cases in differences):
        raise RewindError("an interval needs at least one run, and at least one case in each")
    rng = np.random.default_rng(seed)
    means = np.zeros(draws)
    for cases in differences:
        values = np.asarray(cases, dtype=float)
        rows = max(1, 4_000_000 // len(values))
        for start in range(0, draws, rows):
            stop = min(start + rows, draws)
            means[start:stop] += values[rng.integers(len(values), size=(stop - start, len(values)))].mean(1)
    low, high = np.quantile(means / len(differences), [0.025, 0.975])
    return float(np.mean([np.mean(cases) for cases in differences])), float(low), float(high)
