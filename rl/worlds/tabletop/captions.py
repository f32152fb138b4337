"""Scenes in words: what stands where (columns a.. from the left, rows 1.. from the top), the table, the light."""

from __future__ import annotations

import numpy as np

from rl.worlds.tabletop.operations import RELATIONS, step_from
from rl.worlds.tabletop.scene import EMPTY, Scene, kind_name


def cell_name(cell: int, size: int) -> str:
    """'a1' for the top left cell, 'b1' for the one right of it."""
    return f"{chr(ord('a') + cell % size)}{cell // size + 1}"


def objects(scene: Scene, cells: tuple[int, ...]) -> str:
    """'red circle a1, blue ring c2' for the given cells; 'nothing' if there are none."""
    return ", ".join(f"{kind_name(scene.cells[c])} {cell_name(c, scene.size)}" for c in cells) or "nothing"


def _whole(scene: Scene) -> str:
    return f"{objects(scene, scene.occupied)}, on {scene.material} in {scene.light} light"


def caption(scene: Scene) -> str:
    """The whole scene in words; two scenes have the same caption only if they are equal."""
    return f"picture of {_whole(scene)}"


def relation(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence about two neighbours, or about one object if none touch."""
    found = [
        (cell, word, other)
        for cell in scene.occupied
        for word, offset in RELATIONS.items()
        if (other := step_from(scene, cell, (-offset[0], -offset[1]))) is not None and scene.cells[other] != EMPTY
    ]
    if not found:
        cell = scene.occupied[int(rng.integers(len(scene.occupied)))]
        return f"the {kind_name(scene.cells[cell])} is at {cell_name(cell, scene.size)}"
    cell, word, other = found[int(rng.integers(len(found)))]
    return f"the {kind_name(scene.cells[cell])} is {word} the {kind_name(scene.cells[other])}"


def pair_caption(first: Scene, second: Scene, brief: bool) -> str:
    """Both pictures of a pair in words: the whole scenes, or (`brief`) only what the other one does not have."""
    if not brief:
        return f"first {_whole(first)}. second {_whole(second)}"
    here = tuple(c for c in first.occupied if second.cells[c] != first.cells[c])
    there = tuple(c for c in second.occupied if first.cells[c] != second.cells[c])
    return f"only in the first {objects(first, here)}. only in the second {objects(second, there)}"
