"""Draws the table: anti-aliased shapes with soft shadows on a textured material under a light.

Shapes are signed distance functions in units of a cell (0 at the outline, negative inside), so that the same drawing
works at any size: 16 pixels a cell for models, more for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import cv2
import numpy as np

from rl.worlds.tabletop.scene import Scene, colour_of, shape_of

CELL = 16
"""Pixels along one side of a cell in the pictures that models see: one image token a cell."""

_RGB = {
    "red": (212, 42, 44),
    "yellow": (246, 208, 40),
    "green": (52, 168, 76),
    "blue": (48, 92, 222),
    "purple": (150, 62, 190),
    "white": (248, 248, 246),
    "black": (28, 28, 32),
}
_TABLE_RGB = {"wood": (178, 138, 94), "slate": (98, 108, 122), "linen": (214, 204, 184)}
_LIGHT = {"dim": 0.62, "soft": 0.82, "bright": 1.0}
_SHADOW_OFFSET, _SHADOW_SOFTNESS, _SHADOW_DARKNESS = 0.07, 0.10, 0.45
RADIUS = 0.38
"""Radius of an object in cells: object and shadow stay within the cell."""


@dataclass(frozen=True)
class Sprite:
    """One drawn object: centre in cells from the top left corner of the table, shape, RGB (0..255) and scale."""

    row: float
    col: float
    shape: str
    rgb: tuple[float, float, float]
    scale: float = 1.0


def rgb_of(colour: str) -> tuple[int, int, int]:
    """The RGB of a colour word under full light, for drawings and legends."""
    return _RGB[colour]


def _polygon(points: list[tuple[float, float]], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance to a simple polygon given as (x, y) corners."""
    distance, inside = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - t * dx, y - y0 - t * dy))
        if dy:
            inside ^= ((y0 > y) != (y1 > y)) & (x < dx * (y - y0) / dy + x0)
    return np.where(inside, -distance, distance)


def _regular(count: int, radii: tuple[float, ...], turn: float) -> list[tuple[float, float]]:
    step = 2 * pi / count
    return [
        (radii[i % len(radii)] * cos(turn + i * step), radii[i % len(radii)] * sin(turn + i * step))
        for i in range(count)
    ]


def _distance(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance (in radii) of points (in radii, from the centre) to the outline of a shape."""
    if shape == "circle":
        return np.hypot(x, y) - 0.88
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.92
    if shape == "triangle":
        return _polygon([(0.0, -1.0), (1.05, 0.85), (-1.05, 0.85)], y, x)
    if shape == "star":
        return _polygon(_regular(10, (1.18, 0.5), -pi / 2), y, x)
    if shape == "cross":
        wide, narrow = 1.0, 0.34
        bar = np.maximum(abs(x) - wide, abs(y) - narrow)
        return np.minimum(bar, np.maximum(abs(x) - narrow, abs(y) - wide))
    return abs(np.hypot(x, y) - 0.72) - 0.27  # ring


@lru_cache(maxsize=4096)
def _masks(shape: str, cell: int, frac_y: float, frac_x: float, scale: float) -> tuple[np.ndarray, ...]:
    """Coverage of fill, outline and shadow (float32 [2*cell, 2*cell] in 0..1), centred at (cell + frac) pixels."""
    span = np.arange(2 * cell) + 0.5 - cell
    y, x = np.meshgrid(span - frac_y, span - frac_x, indexing="ij")
    radius = RADIUS * cell * scale
    distance = _distance(shape, y / radius, x / radius) * radius
    fill = np.clip(0.5 - distance, 0, 1)
    core = np.clip(0.5 - (distance + max(0.06 * cell, 0.8)), 0, 1)
    offset = _SHADOW_OFFSET * cell
    shadow_distance = _distance(shape, (y - offset) / radius, (x - offset) / radius) * radius
    shadow = np.clip(0.5 - shadow_distance / (_SHADOW_SOFTNESS * cell), 0, 1)
    return tuple(mask.astype(np.float32) for mask in (fill, core, shadow))


@lru_cache(maxsize=64)
def _table(material: str, size: int, cell: int) -> np.ndarray:
    """The bare table under full light, float32 [H, W, 3]: a fixed texture for each material."""
    side = size * cell
    at = (np.arange(side) + 0.5) / cell
    y, x = np.meshgrid(at, at, indexing="ij")
    if material == "wood":
        tone = 0.07 * np.sin(2 * pi * (2.0 * y + 0.35 * np.sin(1.7 * x)))
    elif material == "slate":
        tone = 0.05 * np.sin(2 * pi * (1.1 * x + 0.9 * y)) * np.sin(2 * pi * (0.8 * x - 1.3 * y))
    else:
        tone = 0.045 * (np.sign(np.sin(4 * pi * x)) * np.sign(np.sin(4 * pi * y)))
    return (np.array(_TABLE_RGB[material], dtype=np.float32) * (1 + tone[..., None])).astype(np.float32)


def sprites_of(scene: Scene) -> list[Sprite]:
    """The objects of a scene at rest."""
    return [
        Sprite(
            cell // scene.size + 0.5,
            cell % scene.size + 0.5,
            shape_of(scene.cells[cell]),
            _RGB[colour_of(scene.cells[cell])],
        )
        for cell in scene.occupied
    ]


def draw(
    sprites: list[Sprite], material: str, brightness: float, size: int, cell: int, noise: np.ndarray | None = None
) -> np.ndarray:
    """Draw sprites on a table, uint8 RGB [size*cell, size*cell, 3]; `noise` (same shape) is added before rounding."""
    side = size * cell
    canvas = _table(material, size, cell).copy()
    layers = []
    for sprite in sprites:
        cy, cx = sprite.row * cell, sprite.col * cell
        whole_y, whole_x = int(np.floor(cy)), int(np.floor(cx))
        # Quarters of a pixel keep the cache of masks small without a visible step.
        frac_y, frac_x = round((cy - whole_y) * 4) / 4, round((cx - whole_x) * 4) / 4
        masks = _masks(sprite.shape, cell, frac_y, frac_x, round(sprite.scale, 2))
        top, left = whole_y - cell, whole_x - cell
        rows = slice(max(top, 0), min(top + 2 * cell, side))
        cols = slice(max(left, 0), min(left + 2 * cell, side))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            continue
        inner = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
        layers.append((rows, cols, [mask[inner][..., None] for mask in masks], np.array(sprite.rgb, np.float32)))
    for rows, cols, (_, _, shadow), _ in layers:
        canvas[rows, cols] *= 1 - _SHADOW_DARKNESS * shadow
    for rows, cols, (fill, core, _), rgb in layers:
        # A darker rim (lighter on black) keeps white on linen and black on slate apart from the table.
        rim = rgb * 0.6 if rgb.max() > 80 else rgb + 50
        ink = rim + (rgb - rim) * core
        canvas[rows, cols] += (ink - canvas[rows, cols]) * fill
    canvas *= brightness
    if noise is not None:
        canvas += noise
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def light_of(light: str) -> float:
    """The brightness factor of a light level."""
    return _LIGHT[light]


def render(scene: Scene, rng: np.random.Generator | None, cell: int = CELL) -> np.ndarray:
    """A scene as uint8 RGB [size*cell, size*cell, 3].

    `rng` draws what a camera and a hand would vary: a quarter pixel of position, 2 % of light, sensor noise. None
    draws the clean picture.
    """
    sprites, brightness, noise = sprites_of(scene), _LIGHT[scene.light], None
    if rng is not None:
        shifts = rng.integers(-1, 2, size=(len(sprites), 2)) / 4 / cell
        sprites = [Sprite(s.row + dy, s.col + dx, s.shape, s.rgb) for s, (dy, dx) in zip(sprites, shifts, strict=True)]
        brightness *= 1 + float(rng.uniform(-0.02, 0.02))
        side = scene.size * cell
        noise = rng.standard_normal((side, side, 3), dtype=np.float32) * 2.0
    return draw(sprites, scene.material, brightness, scene.size, cell, noise)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """A small picture enlarged for people without smoothing, so that it shows what the model saw."""
    height, width = image.shape[:2]
    return np.asarray(cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST))
