"""Random scenes and random operations that fit them."""

from __future__ import annotations

import numpy as np

from rl.worlds.tabletop import operations as ops
from rl.worlds.tabletop.scene import (
    COLOURS,
    EMPTY,
    LIGHTS,
    MATERIALS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    NUM_KINDS,
    SHAPES,
    Scene,
    colour_of,
    shape_of,
)

TWIN_SHARE = 0.25
"""Share of scenes in which one object has a twin of its kind, so that counting has something to count."""


def pick(options: tuple, rng: np.random.Generator):  # type: ignore[no-untyped-def, type-arg]
    """One of the options, uniformly, without numpy turning it into an array element."""
    return options[int(rng.integers(len(options)))]


def random_scene(rng: np.random.Generator, size: int, num_objects: int | None = None) -> Scene:
    """A scene with `num_objects` (uniform in 2..6 if None) objects of random kinds on random cells."""
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)) if num_objects is None else num_objects
    kinds = [int(kind) for kind in rng.integers(NUM_KINDS, size=count)]
    if rng.random() < TWIN_SHARE:
        kinds[1] = kinds[0]
    cells = [EMPTY] * (size * size)
    for cell, kind in zip(rng.permutation(size * size)[:count], kinds, strict=True):
        cells[int(cell)] = kind
    return Scene(tuple(cells), pick(MATERIALS, rng), pick(LIGHTS, rng))


def _attribute(scene: Scene, rng: np.random.Generator) -> ops.Operation:
    kind = pick(scene.kinds, rng)
    choice = int(rng.integers(5))
    if choice == 0:
        return ops.Repaint(kind, pick(COLOURS, rng))
    if choice == 1:
        return ops.Reshape(kind, pick(SHAPES, rng))
    if choice == 2:
        return ops.Remove(kind)
    new = int(rng.integers(NUM_KINDS))
    return ops.Add(new) if choice == 3 else ops.AddInCorner(new, pick(ops.CORNERS, rng))


def _move(scene: Scene, rng: np.random.Generator) -> ops.Operation:
    kind, direction = pick(scene.kinds, rng), pick(tuple(ops.DIRECTIONS), rng)
    choice = int(rng.integers(4))
    if choice == 0:
        return ops.Push(kind, direction)
    return ops.Move(kind, direction, 1 if choice < 3 else int(rng.integers(2, 4)))


def _spatial(scene: Scene, rng: np.random.Generator) -> ops.Operation:
    return ops.Place(pick(scene.kinds, rng), pick((*ops.RELATIONS, "next to"), rng), pick(scene.kinds, rng))


def _count(scene: Scene, rng: np.random.Generator) -> ops.Operation:
    kind = pick(scene.kinds, rng)
    choice = int(rng.integers(6))
    if choice < 2:
        return ops.Add(int(rng.integers(NUM_KINDS)), int(rng.integers(2, 4)))
    if choice == 2:
        return ops.RemoveOne(kind)
    colour = None if choice == 3 else colour_of(kind)
    shape = None if choice == 4 else shape_of(kind)
    return ops.RemoveAll(colour, shape)


_PROPOSE = {"attribute": _attribute, "move": _move, "spatial": _spatial, "count": _count}


def random_operation(scene: Scene, rng: np.random.Generator, family: str, tries: int = 40) -> ops.Operation | None:
    """A random operation of a family that has a result on the scene and leaves at least two objects, or None."""
    for _ in range(tries):
        op = _PROPOSE[family](scene, rng)
        results = op.results(scene)
        if results and len(results[0].occupied) >= MIN_OBJECTS:
            return op
    return None
