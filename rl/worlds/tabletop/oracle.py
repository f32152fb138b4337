"""Reads a scene from pixels and judges a predicted outcome.

Every cell is compared with the clean drawing of every kind of object on every table and light; the table and light are
those that fit the whole picture best. A cell that differs from its nearest drawing by more than `READABLE` anywhere, or
is not clearly nearer to it than to the next, is unreadable, and that is a failure: half an object, or a smear between
two, must not be read as the nearer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from rl.errors import RewindError
from rl.world import Judgement
from rl.worlds.tabletop.render import CELL, render
from rl.worlds.tabletop.scene import EMPTY, LIGHTS, MATERIALS, NUM_KINDS, Scene

UNREADABLE = -2
BLOCK = 4
"""Side in pixels of the blocks into which a cell is cut: a missing corner must not vanish in the cell's average."""
READABLE = 25.0
"""Largest root-mean-square difference of a block, in grey levels 0..255, at which its cell still counts as read."""
CLEAR = 0.5
"""Largest distance to the nearest drawing, as a share of that to the second nearest, at which a cell counts as read."""
DAMAGE_BUDGET = 4
"""Damaged cells at which minimality reaches 0; each costs 10 / 4 points."""

_TABLES = [(material, light) for material in MATERIALS for light in LIGHTS]


@dataclass(frozen=True)
class Reading:
    """What the oracle sees: a kind, `EMPTY` or `UNREADABLE` for each cell, and the table and light."""

    cells: tuple[int, ...]
    material: str
    light: str

    @property
    def scene(self) -> Scene | None:
        """The scene, or None if a cell is unreadable."""
        return None if UNREADABLE in self.cells else Scene(self.cells, self.material, self.light)


def _patches(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 [cells, N, cell*cell*3], blurred so that a quarter pixel does not matter."""
    soft = np.stack([cv2.blur(image, (3, 3)) for image in images]).astype(np.float32)
    n, side = len(images), size * CELL
    grid = soft.reshape(n, size, CELL, size, CELL, 3).transpose(1, 3, 0, 2, 4, 5)
    assert soft.shape[1] == side
    return grid.reshape(size * size, n, CELL * CELL * 3)


@lru_cache(maxsize=4)
def _templates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Clean patches [cells, tables*(kinds+1), D] and their squared norms; the last kind is the empty cell."""
    images = [
        render(Scene((kind,) * (size * size), material, light), None)
        for material, light in _TABLES
        for kind in (*range(NUM_KINDS), EMPTY)
    ]
    patches = _patches(np.stack(images), size)
    return patches, (patches**2).sum(-1)


def read(images: np.ndarray, size: int) -> list[Reading]:
    """Read uint8 RGB pictures [N, H, W, 3] of a size x size table."""
    side = size * CELL
    if images.ndim != 4 or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
        raise RewindError(
            f"the tabletop oracle reads uint8 pictures [N, {side}, {side}, 3]; it got {images.dtype} "
            f"{list(images.shape)}: resize the pictures to {side}x{side}"
        )
    templates, norms = _templates(size)
    patches = _patches(images, size)
    distances = (patches**2).sum(-1)[..., None] - 2 * patches @ templates.transpose(0, 2, 1) + norms[:, None]
    by_table = distances.reshape(size * size, len(images), len(_TABLES), NUM_KINDS + 1)
    nearest = by_table.min(-1)
    tables = nearest.sum(0).argmin(-1)  # [N]
    readings = []
    for n, table in enumerate(tables):
        kinds = by_table[:, n, table].argmin(-1)
        best, second = np.partition(np.maximum(by_table[:, n, table], 0), 1, axis=-1)[:, :2].T
        fitted = templates[np.arange(size * size), table * (NUM_KINDS + 1) + kinds]
        worst = _worst_block(patches[:, n] - fitted)
        cells = tuple(
            (EMPTY if kind == NUM_KINDS else int(kind)) if read else UNREADABLE
            for kind, read in zip(kinds, (worst <= READABLE) & (best <= CLEAR**2 * second), strict=True)
        )
        readings.append(Reading(cells, *_TABLES[int(table)]))
    return readings


def _worst_block(differences_CD: np.ndarray) -> np.ndarray:
    """Root-mean-square of the worst block of each cell, [cells], from differences [cells, cell*cell*3]."""
    blocks = differences_CD.reshape(-1, CELL // BLOCK, BLOCK, CELL // BLOCK, BLOCK, 3)
    worst: np.ndarray = np.sqrt((blocks**2).mean(axis=(2, 4, 5)).max(axis=(1, 2)))
    return worst


def _against(reading: Reading, source: Scene, outcome: Scene) -> Judgement:
    changed = [i for i in range(len(source.cells)) if source.cells[i] != outcome.cells[i]]
    done = sum(reading.cells[i] == outcome.cells[i] for i in changed)
    damaged = sum(reading.cells[i] != source.cells[i] for i in range(len(source.cells)) if i not in changed)
    if (reading.material, reading.light) != (source.material, source.light):
        damaged = DAMAGE_BUDGET
    editing = 10 * done / len(changed) if changed else 10.0
    minimality = 10 * max(0.0, 1 - damaged / DAMAGE_BUDGET)
    return Judgement(editing, minimality, success=done == len(changed) and damaged == 0)


def judge(reading: Reading, source: Scene, outcomes: list[Scene]) -> Judgement:
    """The best judgement over all right outcomes: editing, minimality (0..10 each) and success.

    Editing is the share of the cells that the action changes which read as they should; minimality falls with every
    other cell that reads differently from the source, and is 0 if the table or the light changed.
    """
    return max(
        (_against(reading, source, outcome) for outcome in outcomes),
        key=lambda j: (j.success, j.judge, j.editing),
    )
