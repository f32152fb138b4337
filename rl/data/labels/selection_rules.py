"""Which labelled triplets may be chosen, what their classes are, and how many of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from rl.data.labels.near import BITS
from rl.errors import RewindError
from rl.words import words_of

BALANCES = ("class", "action", "verb", "none")


@dataclass(frozen=True)
class Rules:
    """What is chosen.

    Args:
        by: the column that says which entry of a class is best: `score`, or `confidence`, as `label.py` writes them.
        least: the least value by column that an entry may have, of `score` and `confidence`.
        words: the fewest and the most words of an action.
        balance: what classes are: the entry's `class`, the whole action, its first word (`verb`), or all one.
        motion_bins: quantiles of the column `motion`, each of which takes turns within each class.
        max_per_class: of each class.
        max_per_action: of each sentence.
        near_duplicates: bits of 510 (`near`) in which the pictures of two entries with the same words differ at
            most for the worse one to be passed over; None to look at no picture for that.
    """

    by: str = "score"
    least: dict[str, float] = field(default_factory=dict)
    words: tuple[int, int | None] = (0, None)
    balance: str = "class"
    motion_bins: int = 1
    max_per_class: int | None = None
    max_per_action: int | None = None
    near_duplicates: int | None = None

    def __post_init__(self) -> None:
        if self.balance not in BALANCES:
            raise RewindError(f"classes are balanced by {', '.join(BALANCES)}, not by '{self.balance}'")
        for name, value in (("max_per_class", self.max_per_class), ("max_per_action", self.max_per_action)):
            if value is not None and value < 1:
                raise RewindError(f"{name} must be at least 1, not {value}")
        if self.motion_bins < 1 or self.words[0] < 0 or (self.words[1] is not None and self.words[1] < self.words[0]):
            raise RewindError("there is at least 1 bin of motion, and the fewest words are not above the most")
        if self.near_duplicates is not None and not 0 <= self.near_duplicates < BITS:
            raise RewindError(f"near-duplicates differ in 0 to {BITS - 1} bits, not {self.near_duplicates}")

    def class_of(self, entry: dict[str, Any], action: str) -> Any:
        """The class of an entry, before its motion."""
        if self.balance == "class":
            label = entry.get("class")
            return label if isinstance(label, str | int) and label else "" if not label else str(label)
        words = words_of(action) if self.balance != "none" else []
        return " ".join(words) if self.balance == "action" else words[0] if words else ""

    def passed_over(self, entry: dict[str, Any], action: str) -> str | None:
        """Why an entry may not be chosen at all, in words to count by."""
        for column, least in self.least.items():
            if entry[column] < least:
                return f"{column} below {least:g}"
        if self.words != (0, None):
            count, (fewest, most) = len(words_of(action)), self.words
            if count < fewest:
                return f"fewer than {fewest} words"
            if most is not None and count > most:
                return f"more than {most} words"
        return None


def number_in(name: str, number: int, entry: dict[str, Any], column: str) -> float:
    """What an entry has in a column.

    Raises:
        RewindError: no finite number.
    """
    value = entry.get(column)
    if value is None:
        how = {"score": "label it with label.py", "confidence": "label it with label.py --labelled"}
        told = how.get(column, "motion is measured by mine_videos.py" if column == "motion" else "check --by")
        raise RewindError(f"{name}, triplet {number} has no '{column}': {told}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise RewindError(f"{name}, triplet {number} has no finite {column} to be selected by, but {value!r}")
    return float(value)
