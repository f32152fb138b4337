"""Short clips of somebody at the table: idle, an action, idle, the next one; the light flickers, nobody says a word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rl.world import Segment, Video
from rl.worlds.tabletop.render import CELL, Sprite, draw, light_of, sprites_of
from rl.worlds.tabletop.scene import Scene

MOTION_FRAMES = (4, 6)
IDLE_FRAMES = (2, 6)


def _between(first: Scene, second: Scene, t: float) -> list[Sprite]:
    """Sprites at the moment t in 0..1 of the change from one scene to the next: slide, morph, come or go."""
    size = first.size
    before = dict(zip(first.occupied, sprites_of(first), strict=True))
    after = dict(zip(second.occupied, sprites_of(second), strict=True))
    gone = [c for c in before if second.cells[c] != first.cells[c]]
    come = [c for c in after if second.cells[c] != first.cells[c]]
    sprites = [sprite for c, sprite in before.items() if c not in gone]
    for cell in list(gone):  # the same kind elsewhere: it slid there
        same = [c for c in come if second.cells[c] == first.cells[cell]]
        if same:
            target = min(same, key=lambda c: abs(c // size - cell // size) + abs(c % size - cell % size))
            a, b = before[cell], after[target]
            sprites.append(Sprite(a.row + (b.row - a.row) * t, a.col + (b.col - a.col) * t, a.shape, a.rgb))
            gone.remove(cell)
            come.remove(target)
    for cell in list(gone):
        if cell in come:  # repainted or reshaped in its place
            a, b = before[cell], after[cell]
            if a.shape == b.shape:
                r, g, blue = (x + (y - x) * t for x, y in zip(a.rgb, b.rgb, strict=True))
                sprites.append(Sprite(a.row, a.col, a.shape, (r, g, blue)))
            else:
                sprite = a if t < 0.5 else b
                sprites.append(Sprite(a.row, a.col, sprite.shape, sprite.rgb, max(abs(1 - 2 * t), 0.2)))
            come.remove(cell)
        elif t < 0.9:
            a = before[cell]
            sprites.append(Sprite(a.row, a.col, a.shape, a.rgb, max(1 - t, 0.2)))
    sprites += [Sprite(b.row, b.col, b.shape, b.rgb, max(t, 0.2)) for b in (after[c] for c in come) if t > 0.1]
    return sprites


def film(
    start: Scene,
    next_step: Callable[[Scene, np.random.Generator], tuple[str, Scene] | None],
    label: str,
    rng: np.random.Generator,
    num_frames: int = 24,
) -> Video:
    """A clip of about `num_frames` frames; `next_step` draws an action and its outcome, None ends the clip early.

    The class label is the family of the actions; the truth is kept for checking only.
    """
    scene, segments = start, []
    # Each entry: the scenes before and after, and how far the change has come.
    plan: list[tuple[Scene, Scene, float]] = [(scene, scene, 0.0)] * int(rng.integers(*IDLE_FRAMES, endpoint=True))
    while len(plan) < num_frames - 3:
        step = next_step(scene, rng)
        if step is None:
            break
        action, target = step
        moving = int(rng.integers(*MOTION_FRAMES, endpoint=True))
        begin = len(plan) - 1
        plan += [(scene, target, (i + 1) / (moving + 1)) for i in range(moving)]
        segments.append(Segment(begin, len(plan), action, scene, target))
        scene = target
        plan += [(scene, scene, 0.0)] * int(rng.integers(*IDLE_FRAMES, endpoint=True))
    side = start.size * CELL
    frames = []
    for before, after, t in plan:
        sprites = _between(before, after, t) if t else sprites_of(before)
        flicker = light_of(start.light) * (1 + float(rng.uniform(-0.03, 0.03)))
        noise = rng.standard_normal((side, side, 3), dtype=np.float32) * 2.0
        frames.append(draw(sprites, start.material, flicker, start.size, CELL, noise))
    return Video(np.stack(frames), label, tuple(segments))
