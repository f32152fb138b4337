"""Numbers at the public doors: one sentence where one is missing, of another kind, too small, or fits to no other."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from rl.errors import RewindError


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Raise a `RewindError` unless a value is a whole number (Python's or numpy's), and at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise RewindError(f"{name} must be a whole number, not {value!r}")
    if least is not None and value < least:
        raise RewindError(f"{name} must be at least {least}, not {value}")


def check_real(name: str, value: Any) -> None:
    """Raise a `RewindError` unless a value is a number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise RewindError(f"{name} must be a number, not {value!r}")


def check_thresholds(values: Mapping[str, Any]) -> None:
    """Raise a `RewindError` unless every value is a number, or None for no threshold."""
    for name, value in values.items():
        if value is not None:
            check_real(name, value)
            if value != value:
                raise RewindError(f"{name} must be a number, not nan")


def check_normalise(
    normalise: bool, *, min_score: float | None = None, good_enough: float | None = None, refine: int = 0
) -> None:
    """Refuse what holds a normalised total against something else than the candidates that it was made from.

    Raises:
        RewindError: `normalise` with a threshold of the total, or with refinement.
    """
    given = {"min_score": min_score is not None, "good_enough": good_enough is not None, "refine": refine > 0}
    for name in [name for name, is_given in given.items() if normalise and is_given]:
        raise RewindError(
            f"a normalised total says how a candidate stands among those drawn with it, so it cannot be held against "
            f"anything else: leave out {name}, or the normalisation"
        )
