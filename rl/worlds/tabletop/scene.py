"""Scenes of the tabletop: coloured shapes on the cells of a square grid, a table material and a light level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white", "black")
MATERIALS = ("wood", "slate", "linen")
LIGHTS = ("dim", "soft", "bright")
NUM_KINDS = len(SHAPES) * len(COLOURS)
MIN_OBJECTS, MAX_OBJECTS = 2, 6
EMPTY = -1


def kind_of(colour: str, shape: str) -> int:
    """The kind (0..41) of an object: its shape and its colour."""
    return SHAPES.index(shape) * len(COLOURS) + COLOURS.index(colour)


def shape_of(kind: int) -> str:
    """The shape's word for a kind."""
    return SHAPES[kind // len(COLOURS)]


def colour_of(kind: int) -> str:
    """The colour's word for a kind."""
    return COLOURS[kind % len(COLOURS)]


def kind_name(kind: int) -> str:
    """A kind in words: 'red circle'."""
    return f"{colour_of(kind)} {shape_of(kind)}"


@dataclass(frozen=True)
class Scene:
    """A state of the table.

    `cells` holds, row by row from the top left, the kind of the object in each of the size x size cells, or `EMPTY`.
    """

    cells: tuple[int, ...]
    material: str = "wood"
    light: str = "soft"

    @cached_property
    def size(self) -> int:
        """Cells along one side."""
        return isqrt(len(self.cells))

    @cached_property
    def occupied(self) -> tuple[int, ...]:
        """Indices of the cells that hold an object, in reading order."""
        return tuple(i for i, kind in enumerate(self.cells) if kind != EMPTY)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Indices of the empty cells, in reading order."""
        return tuple(i for i, kind in enumerate(self.cells) if kind == EMPTY)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """The kinds on the table, in reading order, repeated as often as they occur."""
        return tuple(kind for kind in self.cells if kind != EMPTY)

    def where(self, kind: int) -> tuple[int, ...]:
        """Indices of the cells that hold this kind."""
        return tuple(i for i, k in enumerate(self.cells) if k == kind)

    def with_cells(self, changes: Iterable[tuple[int, int]]) -> Scene:
        """The scene with (cell, kind) replaced, in order."""
        cells = list(self.cells)
        for cell, kind in changes:
            cells[cell] = kind
        return replace(self, cells=tuple(cells))
