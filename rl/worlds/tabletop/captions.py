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


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")


def displacement(here: int, there: int, size: int) -> str:
    """Where a cell lies, seen from another: 'two cells up and one cell right'; the way is the shortest."""
    rows, cols = here // size - there // size, here % size - there % size
    ways = [(rows, "up" if rows < 0 else "down"), (cols, "left" if cols < 0 else "right")]
    return " and ".join(f"{NUMBERS[abs(n)]} cell{'s' if abs(n) > 1 else ''} {word}" for n, word in ways if n)


def position(scene: Scene, rng: np.random.Generator) -> str | None:
    """How two objects of a scene lie: 'the red circle is two cells up and one cell right of the blue ring'."""
    a, b = (int(c) for c in rng.choice(scene.occupied, 2, replace=False)) if len(scene.occupied) > 1 else (0, 0)
    if a == b:
        return None
    way = displacement(a, b, scene.size)
    return f"the {kind_name(scene.cells[a])} is {way} of the {kind_name(scene.cells[b])}"


def position_across(first: Scene, second: Scene, rng: np.random.Generator) -> str | None:
    """How an object of the second picture lies, seen from one of another kind in the first; None if there is none.

    Never of one kind: a pair of pictures is compared, what happened between them is not told.
    """
    found = [(a, b) for a in second.occupied for b in first.occupied if a != b and second.cells[a] != first.cells[b]]
    if not found:
        return None
    a, b = found[int(rng.integers(len(found)))]
    one, other = kind_name(second.cells[a]), kind_name(first.cells[b])
    return f"the {one} in the second is {displacement(a, b, first.size)} of the {other} in the first"


def pair_caption(first: Scene, second: Scene, brief: bool) -> str:
    """Both pictures of a pair in words: the whole scenes, or (`brief`) only what the other one does not have."""
    if not brief:
        return f"first {_whole(first)}. second {_whole(second)}"
    here = tuple(c for c in _changed(first, second) if first.cells[c] != EMPTY)
    there = tuple(c for c in _changed(first, second) if second.cells[c] != EMPTY)
    return f"only in the first {objects(first, here)}. only in the second {objects(second, there)}"


def changed_cells(first: Scene, second: Scene) -> str:
    """Cell by cell what differs: 'c1 first red circle second nothing, d1 first nothing second red circle'."""

    def thing(scene: Scene, cell: int) -> str:
        return kind_name(scene.cells[cell]) if scene.cells[cell] != EMPTY else "nothing"

    return (
        ", ".join(
            f"{cell_name(c, first.size)} first {thing(first, c)} second {thing(second, c)}"
            for c in _changed(first, second)
        )
        or "nothing only in the first"
    )


def _changed(first: Scene, second: Scene) -> list[int]:
    return [c for c in range(first.size**2) if first.cells[c] != second.cells[c]]
