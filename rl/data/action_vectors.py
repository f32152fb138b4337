"""Triplets whose actions are vectors: all of them or none, and the ranges of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl.actions import ActionBins, vector_of
from rl.errors import RewindError
from rl.paths import expanded
from rl.running.files import read_json
from rl.triplets import Triplet


def read_ranges(file: str | Path) -> ActionBins:
    """The ranges in a JSON file: `{"low": [...], "high": [...]}`, a number each of the action's.

    Raises:
        RewindError: the file cannot be read, or holds no ranges.
    """
    try:
        return ActionBins.of(read_json(expanded(file)))
    except RewindError as error:
        raise RewindError(f"--action_ranges {file}: {error}") from error


def ranges_of(triplets: Sequence[Triplet], file: str | Path | None = None) -> ActionBins | None:
    """The ranges by which the actions of triplets become tokens: a file's, or what their numbers span; None for words.

    Raises:
        RewindError: words among vectors, vectors of several lengths, ranges for words.
    """
    vectors = [vector_of(triplet.action) for triplet in triplets]
    found = [vector for vector in vectors if vector is not None]
    if not found:
        if file is not None:
            raise RewindError("--action_ranges are for actions that are vectors, and these are words: leave it out")
        return None
    wrong = next((n for n, v in enumerate(vectors) if v is None or len(v) != len(found[0])), None)
    if wrong is not None:
        raise RewindError(
            f"triplet {wrong} has the action '{triplets[wrong].action}', and others are vectors of {len(found[0])} "
            "numbers: a model learns one kind of action"
        )
    return ActionBins.around(found) if file is None else read_ranges(file)
