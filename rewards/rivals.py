"""Other actions to hold the commanded one against: in comparable phrasing, and never one with the same outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rl.pictures import Picture
from rl.words import words_of

SameOutcome = Callable[[Picture, str, str], bool]
"""`(source_picture, a, b)`: whether two sentences name one outcome, where a world can tell."""

SWAPS = (
    ("left", "right"),
    ("up", "down"),
    ("above", "under"),
    ("above", "below"),
    ("add", "remove"),
    ("open", "close"),
    ("into", "out of"),
    ("red", "blue"),
    ("blue", "yellow"),
    ("green", "purple"),
    ("white", "black"),
    ("circle", "square"),
    ("star", "cross"),
    ("triangle", "ring"),
)
"""Words whose exchange names another action in the same phrasing."""


def word_edits(action: str) -> list[str]:
    """The action with one word exchanged for its counterpart, for each word of `SWAPS` in it."""
    words, found = action.split(), []
    for one, other in [*SWAPS, *((b, a) for a, b in SWAPS)]:
        if one in words:
            found.append(" ".join(other if word == one else word for word in words))
    return list(dict.fromkeys(found))


def pick_rivals(
    source: Picture,
    action: str,
    offered: Sequence[str],
    count: int,
    same_outcome: SameOutcome | None = None,
    always: int = 0,
) -> list[str]:
    """The first `count` of the offered sentences, and in any case what the first `always` of them hold.

    Left out are empty ones, the action itself and repetitions (by their words), and what names the same outcome.
    """
    seen: set[tuple[str, ...]] = {tuple(words_of(action))}
    rivals: list[str] = []
    for number, rival in enumerate(offered):
        if number >= always and len(rivals) >= count:
            break
        key = tuple(words_of(rival))
        if not key or key in seen:
            continue
        seen.add(key)
        if same_outcome is not None and same_outcome(source, action, rival):
            continue
        rivals.append(rival)
    return rivals
