"""The protocol that makes a world usable by the demo, the trainers and the evaluation.

A world is an object; only `render`, `sample_scene`, `sample_action`, `outcomes` and `judge` (with `name` and
`image_size`) are required. Load one by name or from a file with `rl.worlds.load_world`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

Scene = Hashable
"""What a world calls a state. Two equal scenes are the same state."""


@dataclass(frozen=True)
class Judgement:
    """What an oracle or a judge says of one predicted picture.

    `editing` (did the action happen) and `minimality` (was the rest kept) are in 0..10; `success` is True if the
    picture reads exactly as one of the right outcomes.
    """

    editing: float
    minimality: float
    success: bool

    @property
    def judge(self) -> float:
        """min(editing, minimality), 0..10: the score of arXiv 2506.06006."""
        return min(self.editing, self.minimality)


@dataclass(frozen=True)
class Segment:
    """One action of a video: it starts from the picture at frame `start` and has happened at frame `end`."""

    start: int
    end: int
    action: str
    source: Scene
    target: Scene


@dataclass(frozen=True)
class Video:
    """An unlabelled clip. `truth` is for checking only: no training code may read it.

    `frames_THWC` is uint8 RGB [T, H, W, 3]; `label` is the class that a video data set would give (not an action).
    """

    frames_THWC: np.ndarray
    label: str
    truth: tuple[Segment, ...] = field(default=(), repr=False)


@runtime_checkable
class World(Protocol):
    """What a world must offer. `rng` is a `numpy.random.Generator`; equal generators give equal results."""

    name: str
    image_size: int

    def sample_scene(self, rng: np.random.Generator) -> Any:
        """A random scene of this world's split."""
        ...

    def sample_action(self, scene: Any, rng: np.random.Generator) -> str:
        """A random action in words that can be carried out on `scene`."""
        ...

    def outcomes(self, scene: Any, action: str) -> list[Any]:
        """All scenes that count as a right result of `action` on `scene`; empty if it cannot be carried out or is no
        sentence of this world (an inverse model may say anything).
        """
        ...

    def render(self, scene: Any, rng: np.random.Generator) -> np.ndarray:
        """The scene as uint8 RGB [image_size, image_size, 3]; `rng` draws what a camera would vary."""
        ...

    def judge(self, scene: Any, action: str, image: np.ndarray) -> Judgement:
        """Judge a predicted picture of the result of `action` on `scene`."""
        ...


REQUIRED_METHODS = ("sample_scene", "sample_action", "outcomes", "render", "judge")
REQUIRED_ATTRIBUTES = ("name", "image_size")
OPTIONAL_METHODS = ("sample_task", "caption", "facts", "compare", "same_outcome", "video", "split", "holds")


def draw_task(world: World, rng: np.random.Generator) -> tuple[Any, str]:
    """A scene and an action on it; a world may offer `sample_task(rng)` to draw both at once."""
    together = getattr(world, "sample_task", None)
    if together is not None:
        return together(rng)  # type: ignore[no-any-return]
    scene = world.sample_scene(rng)
    return scene, world.sample_action(scene, rng)


def in_split(world: World, scene: Any, action: str) -> bool:
    """Whether a case is of the world's split, as far as it tells: a world may offer `holds(scene, action)`."""
    holds = getattr(world, "holds", None)
    return holds is None or bool(holds(scene, action))
