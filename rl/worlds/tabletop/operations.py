"""What an action does to a scene. One small class an operation; `results` gives every right outcome.

Four task families, named after what they imitate: `attribute` (MagicBrush), `move` (Action-Genome, Something),
`spatial` (WhatsUp) and `count` (Kubric), the domains of AURORA-Bench (arXiv 2407.03471).
An operation that cannot be carried out, that names an object ambiguously, or that would change nothing, has no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Protocol

from rl.worlds.tabletop.scene import (
    COLOURS,
    EMPTY,
    MAX_OBJECTS,
    SHAPES,
    Scene,
    colour_of,
    kind_of,
    shape_of,
)

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "under": (1, 0)}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
FAMILIES = ("attribute", "move", "spatial", "count")


class Operation(Protocol):
    """An action with its meaning resolved."""

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        ...

    def results(self, scene: Scene) -> list[Scene]:
        """Every right outcome on this scene; empty if it cannot be carried out."""
        ...


def step_from(scene: Scene, cell: int, offset: tuple[int, int]) -> int | None:
    """The neighbouring cell in a direction, or None outside the table."""
    row, col = cell // scene.size + offset[0], cell % scene.size + offset[1]
    return row * scene.size + col if 0 <= row < scene.size and 0 <= col < scene.size else None


def _only(scene: Scene, kind: int) -> int | None:
    """The cell of the one object of this kind; None if there is none or the words would be ambiguous."""
    found = scene.where(kind)
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Repaint:
    """Give the one object of a kind another colour."""

    family: ClassVar[str] = "attribute"
    kind: int
    colour: str

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none."""
        cell = _only(scene, self.kind)
        if cell is None or colour_of(self.kind) == self.colour:
            return []
        return [scene.with_cells([(cell, kind_of(self.colour, shape_of(self.kind)))])]


@dataclass(frozen=True)
class Reshape:
    """Give the one object of a kind another shape."""

    family: ClassVar[str] = "attribute"
    kind: int
    shape: str

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none."""
        cell = _only(scene, self.kind)
        if cell is None or shape_of(self.kind) == self.shape:
            return []
        return [scene.with_cells([(cell, kind_of(colour_of(self.kind), self.shape))])]


@dataclass(frozen=True)
class Remove:
    """Take the one object of a kind off the table."""

    family: ClassVar[str] = "attribute"
    kind: int

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none."""
        cell = _only(scene, self.kind)
        return [] if cell is None else [scene.with_cells([(cell, EMPTY)])]


@dataclass(frozen=True)
class AddInCorner:
    """Put a new object in a named corner that is free."""

    family: ClassVar[str] = "attribute"
    kind: int
    corner: str

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none."""
        vertical, horizontal = self.corner.split()
        row = 0 if vertical == "top" else scene.size - 1
        col = 0 if horizontal == "left" else scene.size - 1
        cell = row * scene.size + col
        if scene.cells[cell] != EMPTY or len(scene.occupied) >= MAX_OBJECTS:
            return []
        return [scene.with_cells([(cell, self.kind)])]


@dataclass(frozen=True)
class Add:
    """Put `count` new objects of a kind on any free cells; one is `attribute`, several are `count`."""

    kind: int
    count: int = 1

    @property
    def family(self) -> str:
        """'attribute' for one object, 'count' for several."""
        return "attribute" if self.count == 1 else "count"

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome for each choice of free cells."""
        if len(scene.occupied) + self.count > MAX_OBJECTS:
            return []
        return [
            scene.with_cells([(cell, self.kind) for cell in chosen]) for chosen in combinations(scene.free, self.count)
        ]


@dataclass(frozen=True)
class Move:
    """Move the one object of a kind some cells in a direction; every cell on the way must be free."""

    family: ClassVar[str] = "move"
    kind: int
    direction: str
    steps: int = 1

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none."""
        start = _only(scene, self.kind)
        if start is None:
            return []
        cell = start
        for _ in range(self.steps):
            following = step_from(scene, cell, DIRECTIONS[self.direction])
            if following is None or scene.cells[following] != EMPTY:
                return []
            cell = following
        return [scene.with_cells([(start, EMPTY), (cell, self.kind)])]


@dataclass(frozen=True)
class Push:
    """Move the one object of a kind by one cell, pushing along whatever stands in the way."""

    family: ClassVar[str] = "move"
    kind: int
    direction: str

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none if something would be pushed off the table."""
        start = _only(scene, self.kind)
        if start is None:
            return []
        changes, carried, cell = [(start, EMPTY)], self.kind, start
        while carried != EMPTY:
            following = step_from(scene, cell, DIRECTIONS[self.direction])
            if following is None:
                return []
            changes.append((following, carried))
            carried, cell = scene.cells[following], following
        return [scene.with_cells(changes)]


@dataclass(frozen=True)
class Place:
    """Put the one object of a kind into the cell beside the one object of another kind."""

    family: ClassVar[str] = "spatial"
    kind: int
    relation: str
    anchor: int

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome for a side; up to four for 'next to'; none if it is there already or no such cell is free."""
        start, anchor = _only(scene, self.kind), _only(scene, self.anchor)
        if start is None or anchor is None or start == anchor:
            return []
        offsets = list(RELATIONS.values()) if self.relation == "next to" else [RELATIONS[self.relation]]
        beside = [step_from(scene, anchor, offset) for offset in offsets]
        if start in beside:
            return []
        free = [cell for cell in beside if cell is not None and scene.cells[cell] == EMPTY]
        return [scene.with_cells([(start, EMPTY), (cell, self.kind)]) for cell in free]


@dataclass(frozen=True)
class RemoveAll:
    """Take off every object of a colour, of a shape, or of both; at least two must be there."""

    family: ClassVar[str] = "count"
    colour: str | None
    shape: str | None

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome, or none."""
        kinds = {
            kind_of(colour, shape)
            for colour in ((self.colour,) if self.colour else COLOURS)
            for shape in ((self.shape,) if self.shape else SHAPES)
        }
        cells = [cell for cell in scene.occupied if scene.cells[cell] in kinds]
        return [scene.with_cells([(cell, EMPTY) for cell in cells])] if len(cells) >= 2 else []


@dataclass(frozen=True)
class RemoveOne:
    """Take off one of several objects of a kind."""

    family: ClassVar[str] = "count"
    kind: int

    def results(self, scene: Scene) -> list[Scene]:
        """One outcome for each object of the kind."""
        cells = scene.where(self.kind)
        return [scene.with_cells([(cell, EMPTY)]) for cell in cells] if len(cells) >= 2 else []
