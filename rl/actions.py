"""An action that is a vector of numbers, such as a robot's: how it is written as text, and in bins.

Everywhere an action is a text. A vector is the JSON list of its numbers, `[0.1, -0.25, 1.0]`: so files, stores, reports
and rewards need no second kind of action, and only what turns actions into tokens looks into it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np

from rl.errors import RewindError

NUM_BINS = 256
_RANGE_NAMES = (("low", "high"), ("min", "max"), ("q01", "q99"))


def vector_of(action: str) -> tuple[float, ...] | None:
    """The numbers of an action that is a vector; None for an action in words."""
    if not action.lstrip().startswith("["):
        return None
    try:
        found = json.loads(action)
    except ValueError:
        return None
    return tuple(map(float, found)) if is_vector(found) else None


def is_vector(given: Any) -> bool:
    """Whether something is a list of at least one finite number."""
    return (
        isinstance(given, Sequence | np.ndarray)
        and not isinstance(given, str)
        and len(given) > 0
        and all(isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(float(x)) for x in given)
    )


def action_text(action: Any) -> Any:
    """A vector (list, tuple or array of numbers) as the text that stands for it; anything else as it is.

    Vectors of one length are the steps of an action, one behind the other.
    """
    if isinstance(action, list | tuple | np.ndarray) and len(action) and all(is_vector(step) for step in action):
        action = [x for step in action for x in step] if len({len(step) for step in action}) == 1 else action
    return json.dumps([float(x) for x in action]) if is_vector(action) else action


@dataclass(frozen=True)
class ActionBins:
    """How the numbers of a vector become one of 256 bins each: evenly between a least and a greatest, a pair a number.

    The bins are those of RT-2's followers: 256 edges, so that 255 intervals have a centre and the greatest number has a
    bin of its own, which means the last interval's centre. What lies outside is taken for the nearest edge. An action
    of several `steps` is one vector, step by step, and every step has the same ranges.

    Raises:
        RewindError: no numbers, or a greatest below the least.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    steps: int = 1

    def __post_init__(self) -> None:
        if not (is_vector(self.low) and is_vector(self.high) and len(self.low) == len(self.high)):
            raise RewindError("the ranges of an action are two lists of numbers of one length, 'low' and 'high'")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise RewindError(f"an action has a whole number of steps, at least 1, not {self.steps}")
        if wrong := [i for i, (a, b) in enumerate(zip(self.low, self.high, strict=True)) if a > b]:
            raise RewindError(
                f"the range of number {wrong[0]} of an action is upside down: {self.low[wrong[0]]} to "
                f"{self.high[wrong[0]]}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ActionBins:
        """From `low` and `high`, `min` and `max`, or `q01` and `q99`, and perhaps `steps`.

        Raises:
            RewindError: none of these pairs, or they are no ranges.
        """
        for low, high in _RANGE_NAMES:
            if is_vector(values.get(low)) and is_vector(values.get(high)):
                ends = [tuple(map(float, values[name])) for name in (low, high)]
                return cls(ends[0], ends[1], values.get("steps", 1))
        raise RewindError("the ranges of an action need 'low' and 'high' (or min, max; q01, q99), lists of numbers")

    @classmethod
    def around(cls, vectors: Sequence[Sequence[float]]) -> ActionBins:
        """The least and greatest of each number among vectors of one length."""
        found = np.array(vectors, dtype=float)
        return cls(tuple(found.min(0).tolist()), tuple(found.max(0).tolist()))

    @property
    def numbers(self) -> int:
        """How many numbers an action has."""
        return self.steps * len(self.low)

    def shares(self, values: Sequence[float]) -> np.ndarray:
        """Each number's place between its least (0) and greatest (1), float [steps, D].

        Raises:
            RewindError: a vector of another length.
        """
        if len(values) != self.numbers:
            raise RewindError(f"an action has {self.numbers} numbers here, not {len(values)}: {list(values)}")
        width = np.array(self.high) - self.low
        found = (np.array(values).reshape(self.steps, -1) - self.low) / np.where(width > 0, width, 1.0)
        return found.clip(0.0, 1.0)  # type: ignore[no-any-return]

    def at(self, shares_TD: np.ndarray) -> tuple[float, ...]:
        """The numbers at these places."""
        return tuple((np.array(self.low) + shares_TD * (np.array(self.high) - self.low)).flatten().tolist())

    def bins(self, values: Sequence[float]) -> list[int]:
        """The bin of each number, 0..255; raises as `shares`."""
        return np.floor(self.shares(values).flatten() * (NUM_BINS - 1)).astype(int).tolist()  # type: ignore[no-any-return]

    def values(self, bins: Sequence[int]) -> tuple[float, ...]:
        """The centre of each number's bin."""
        return self.at((np.minimum(bins, NUM_BINS - 2).reshape(self.steps, -1) + 0.5) / (NUM_BINS - 1))

    def likeness(self, one: Sequence[float], other: Sequence[float]) -> float:
        """1 minus the mean distance of two vectors, each number's as a share of its range: 1 for equal ones, 0..1."""
        return float(1.0 - np.abs(self.shares(one) - self.shares(other)).mean())

    def card(self) -> dict[str, Any]:
        """For `rewind.json`."""
        return asdict(self)
