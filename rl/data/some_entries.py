"""Some entries of a file of triplets, where only their numbers say which are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.data.left_out import LeftOut
from rl.data.triplet_files import _left_out, _roots, _triplets
from rl.paths import expanded
from rl.triplets import Triplet


def reader_of(
    path: str | Path, first: Sequence[Any], image_root: str | Path | None = None
) -> Callable[[Mapping[int, Any]], tuple[dict[int, Triplet], list[LeftOut]]]:
    """A function that reads some of a file's entries, given by number, as `read_triplets` does: what can be used, and
    what is left out. `first` are the file's first entries, which tell where paths start from.
    """
    file = expanded(path)
    roots = _roots(file, image_root, first)

    def read(raw: Mapping[int, Any]) -> tuple[dict[int, Triplet], list[LeftOut]]:
        numbers = list(raw)
        triplets, faults = _triplets([*raw.values()], roots, True, False)
        usable = [number for place, number in enumerate(numbers) if place not in faults]
        left = [_left_out(file, numbers[place], faults[place]) for place in sorted(faults)]
        return dict(zip(usable, triplets, strict=True)), left

    return read
