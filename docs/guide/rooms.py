"""A world of one's own, whole: an agent in a room that turns, steps, takes, drops and pushes (docs/guide/worlds.md).

python scripts/demo.py --world docs/guide/rooms.py:Rooms --base runs/rooms --output runs/rooms-demo
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rl.world import Judgement

SIZE, CELL = 3, 16
FORWARD = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
HEADINGS = tuple(FORWARD)
COLOURS = {"red": (220, 50, 40), "green": (40, 170, 70), "blue": (50, 90, 230)}
FLOOR, WALL, BALLS, BOXES = "floor", "wall", [f"{c} ball" for c in COLOURS], [f"{c} box" for c in COLOURS]


class Room(NamedTuple):
    """What fills each cell, row by row; the agent's cell, where it looks, and the ball that it carries, '' for none."""

    cells: tuple[str, ...]
    place: int
    heading: str
    carries: str = ""

    def ahead(self, steps: int = 1) -> int | None:
        """The cell so many steps in front of the agent; None outside the room."""
        down, right = FORWARD[self.heading]
        row, column = self.place // SIZE + steps * down, self.place % SIZE + steps * right
        return SIZE * row + column if 0 <= row < SIZE and 0 <= column < SIZE else None

    def at(self, cell: int | None) -> str:
        return WALL if cell is None else self.cells[cell]

    def put(self, cell: int, what: str) -> tuple[str, ...]:
        return (*self.cells[:cell], what, *self.cells[cell + 1 :])

    def seen(self) -> tuple[str, ...]:
        """What each cell shows."""
        return self.put(self.place, f"agent {self.heading} {self.carries}".strip())


def named(cell: int) -> str:
    """'a1' for the top left cell, 'b1' for the one right of it."""
    return f"{'abc'[cell % SIZE]}{cell // SIZE + 1}"


def drawings() -> dict[str, np.ndarray]:
    """All that a cell can show, float [CELL, CELL, 3]."""
    rows, columns = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    edge, disc = np.maximum(abs(rows), abs(columns)), np.hypot(rows, columns)
    floor = np.full((CELL, CELL, 3), (205.0, 195.0, 175.0))
    found = {FLOOR: floor, WALL: np.where(((rows // 4 + columns // 8) % 2 == 0)[..., None], 70.0, 100.0) + 0 * floor}
    for name, colour in COLOURS.items():
        found[f"{name} ball"] = np.where((disc < 5)[..., None], colour, floor)
        found[f"{name} box"] = np.where((edge < 7)[..., None], np.where((edge > 4)[..., None], 40, colour), floor)
    for turns, heading in enumerate(HEADINGS):
        for carried in ("", *COLOURS):  # its front is yellow, its back purple or what it carries
            agent = np.where((rows < 0)[..., None], (250, 210, 40), COLOURS.get(carried, (110, 30, 140)))
            picture = np.where((edge < 7)[..., None], agent, floor)
            name = f"agent {heading} {carried} ball" if carried else f"agent {heading}"
            found[name] = np.rot90(picture, -turns)
    return found


class Rooms:
    """Rooms of 3x3 cells: turn left, turn right, step forward, pick up the red ball, drop it, push the blue box."""

    name, image_size = "rooms", SIZE * CELL

    def __init__(self) -> None:
        self.drawn = drawings()
        self.names = list(self.drawn)

    def sample_scene(self, rng: np.random.Generator) -> Room:
        number = int(rng.integers(2, 5))
        things = [WALL, *rng.choice([WALL, *BALLS, *BOXES, *BOXES], number)]
        cells = [*things, *[FLOOR] * (SIZE**2 - len(things))]
        mixed = tuple(str(cells[i]) for i in rng.permutation(SIZE**2))
        free = [cell for cell, what in enumerate(mixed) if what == FLOOR]
        carries = str(rng.choice(BALLS)) if rng.random() < 0.3 else ""
        return Room(mixed, int(rng.choice(free)), HEADINGS[int(rng.integers(4))], carries)

    def sample_action(self, scene: Room, rng: np.random.Generator) -> str:
        what = scene.at(scene.ahead())
        said = ["turn left", "turn right", "step forward", f"pick up the {what}", f"push the {what}"]
        said.append(f"drop the {scene.carries}")
        possible = [action for action in said if self.outcomes(scene, action)]
        rare = [action for action in possible if not action.startswith("turn")]
        return str(rng.choice(rare if rare and rng.random() < 0.7 else possible))

    def outcomes(self, scene: Room, action: str) -> list[Room]:
        ahead, beyond = scene.ahead(), scene.ahead(2)
        what = scene.at(ahead)
        if action in ("turn left", "turn right"):
            turned = HEADINGS.index(scene.heading) + (1 if action == "turn right" else -1)
            return [scene._replace(heading=HEADINGS[turned % 4])]
        if ahead is None:
            return []
        if action == "step forward" and what == FLOOR:
            return [scene._replace(place=ahead)]
        if action == f"pick up the {what}" and what in BALLS and not scene.carries:
            return [scene._replace(cells=scene.put(ahead, FLOOR), carries=what)]
        if scene.carries and action == f"drop the {scene.carries}" and what == FLOOR:
            return [scene._replace(cells=scene.put(ahead, scene.carries), carries="")]
        if action == f"push the {what}" and what in BOXES and beyond is not None and scene.at(beyond) == FLOOR:
            pushed = scene._replace(cells=scene.put(beyond, what))
            return [pushed._replace(cells=pushed.put(ahead, FLOOR), place=ahead)]
        return []

    def render(self, scene: Room, rng: np.random.Generator) -> np.ndarray:
        rows = np.stack([self.drawn[what] for what in scene.seen()]).reshape(SIZE, SIZE, CELL, CELL, 3)
        clean = rows.swapaxes(1, 2).reshape(self.image_size, self.image_size, 3)
        noisy = clean * rng.uniform(0.97, 1.03) + rng.normal(0, 3, clean.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    def shown(self, image: np.ndarray) -> list[str]:
        """What each cell shows most likely; '?' where it is like nothing."""
        cells = image.reshape(SIZE, CELL, SIZE, CELL, 3).swapaxes(1, 2).reshape(SIZE**2, 1, CELL, CELL, 3)
        errors = np.sqrt(((cells - np.stack(list(self.drawn.values()))) ** 2).mean((2, 3, 4)))
        return [self.names[row.argmin()] if row.min() < 40 else "?" for row in errors]

    def judge(self, scene: Room, action: str, image: np.ndarray) -> Judgement:
        shown, before, right = self.shown(image), scene.seen(), self.outcomes(scene, action)[0].seen()
        same = [a == b for a, b in zip(shown, right, strict=True)]
        changed = [cell for cell in range(SIZE**2) if right[cell] != before[cell]]
        others = [ok for cell, ok in enumerate(same) if cell not in changed]
        editing = 10 * np.mean([same[cell] for cell in changed])
        return Judgement(float(editing), max(0.0, 10 - 2.5 * others.count(False)), all(same))

    def caption(self, scene: Room, rng: np.random.Generator) -> str:
        agent, what = scene.seen()[scene.place], scene.at(scene.ahead())
        things = [cell for cell, name in enumerate(scene.cells) if name != FLOOR]
        other = int(rng.choice(things))
        return f"{agent} at {named(scene.place)}, before it {what}, {scene.cells[other]} at {named(other)}"
