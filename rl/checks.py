"""Numbers at the public doors: one sentence where one is missing, of another kind or too small."""

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
