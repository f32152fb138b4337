"""The tabletop as a `World`: scenes, actions in words, pictures, videos, captions, an oracle, splits."""

from __future__ import annotations

import numpy as np

from rl.errors import RewindError
from rl.world import Judgement, Video
from rl.worlds.tabletop import captions, oracle, phrases
from rl.worlds.tabletop.operations import FAMILIES, Operation
from rl.worlds.tabletop.render import CELL, render
from rl.worlds.tabletop.sampling import pick, random_operation, random_scene
from rl.worlds.tabletop.scene import MAX_OBJECTS, MIN_OBJECTS, Scene
from rl.worlds.tabletop.splits import SPLITS, belongs
from rl.worlds.tabletop.video import film


class Tabletop:
    """A table seen from above, size x size cells, 2 to 6 coloured shapes on it.

    Args:
        split: 'train', 'validation', 'test' or 'test_phrasing' (see `splits`): which scenes and phrasings it samples.
        size: cells along one side; a picture has 16 pixels a cell, so 4 gives 64x64.
    """

    name = "tabletop"
    families = FAMILIES
    splits = SPLITS

    def __init__(self, split: str = "train", size: int = 4) -> None:
        if split not in SPLITS:
            raise RewindError(f"the tabletop world has no split '{split}': choose one of {', '.join(SPLITS)}")
        if not 3 <= size <= 8:  # six objects have to fit, with room to move
            raise RewindError(f"the tabletop world takes a size of 3 to 8 cells, not {size}")
        self.split_name = split
        self.size = size
        self.image_size = size * CELL

    def split(self, name: str) -> Tabletop:
        """The same world restricted to another split."""
        return Tabletop(name, self.size)

    def sample_scene(self, rng: np.random.Generator) -> Scene:
        """A scene of the split; the number of objects is drawn first, so that it is distributed alike in all splits."""
        count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
        while True:
            scene = random_scene(rng, self.size, count)
            if belongs(scene, self.split_name):
                return scene

    def _legal(self, scene: Scene, op: Operation) -> bool:
        return all(belongs(outcome, self.split_name) for outcome in op.results(scene))

    def sample_action(self, scene: Scene, rng: np.random.Generator) -> str:
        """An action in words on a scene, all of whose outcomes stay in the split; the family is drawn first."""
        for _ in range(200):
            op = random_operation(scene, rng, pick(FAMILIES, rng))
            if op is not None and self._legal(scene, op):
                return phrases.say(op, rng, unseen=self.split_name == "test_phrasing")
        raise RewindError(f"no action of the split '{self.split_name}' is possible on this scene: {scene}")

    def sample_task(self, rng: np.random.Generator, family: str | None = None) -> tuple[Scene, str]:
        """A scene and an action on it, number of objects and family drawn first: alike in all splits."""
        family = family or pick(FAMILIES, rng)
        count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
        while True:
            scene = random_scene(rng, self.size, count)
            if not belongs(scene, self.split_name):
                continue
            op = random_operation(scene, rng, family)
            if op is not None and self._legal(scene, op):
                return scene, phrases.say(op, rng, unseen=self.split_name == "test_phrasing")

    def outcomes(self, scene: Scene, action: str) -> list[Scene]:
        """All right results of an action; empty if it is no sentence of this world or cannot be carried out."""
        op = phrases.parse(action)
        return op.results(scene) if op is not None else []

    def same_outcome(self, scene: Scene, a: str, b: str) -> bool:
        """Whether two actions have the same right results on a scene (and have any)."""
        first, second = self.outcomes(scene, a), self.outcomes(scene, b)
        return bool(first) and set(first) == set(second)

    def family(self, action: str) -> str | None:
        """The task family of a sentence, or None if it is no sentence of this world."""
        op = phrases.parse(action)
        return op.family if op is not None else None

    def render(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """uint8 RGB [16*size, 16*size, 3]."""
        return render(scene, rng)

    def draw_large(self, scene: Scene, cell: int = 64) -> np.ndarray:
        """The clean scene drawn larger, for people: uint8 RGB [cell*size, cell*size, 3]."""
        return render(scene, None, cell)

    def caption(self, scene: Scene, rng: np.random.Generator) -> str:
        """The whole scene in words."""
        return captions.caption(scene)

    def facts(self, scene: Scene, rng: np.random.Generator) -> str:
        """One more sentence about the scene: how two neighbours or any two objects lie."""
        far = captions.position(scene, rng) if rng.random() < 0.5 else None
        return far or captions.relation(scene, rng)

    def compare(self, first: Scene, second: Scene, rng: np.random.Generator) -> list[str]:
        """Two scenes in words: both whole, only what the other one does not have, the changed cells, and how an object
        of one lies, seen from another kind of object in the other.
        """
        sentences = [captions.pair_caption(first, second, brief) for brief in (False, True)]
        across = captions.position_across(first, second, rng)
        return [*sentences, captions.changed_cells(first, second), *([across] if across else [])]

    def read(self, images: np.ndarray) -> list[oracle.Reading]:
        """What the oracle sees in uint8 RGB pictures [N, H, W, 3]."""
        return oracle.read(images, self.size)

    def judge(self, scene: Scene, action: str, image: np.ndarray) -> Judgement:
        """Judge one predicted picture, uint8 RGB [H, W, 3]."""
        return self.judge_many([scene], [action], image[None])[0]

    def judge_many(self, scenes: list[Scene], actions: list[str], images: np.ndarray) -> list[Judgement]:
        """Judge predicted pictures [N, H, W, 3] of N scenes and actions at once."""
        readings = self.read(images)
        judgements = []
        for scene, action, reading in zip(scenes, actions, readings, strict=True):
            outcomes = self.outcomes(scene, action)
            if not outcomes:
                raise RewindError(f"the action '{action}' cannot be carried out on this scene, so nothing can judge it")
            judgements.append(oracle.judge(reading, scene, outcomes))
        return judgements

    def video(self, rng: np.random.Generator) -> Video:
        """A clip of about 24 frames, all actions of one family, every scene of it in the split."""
        family = pick(FAMILIES, rng)
        start, _ = self.sample_task(rng, family)

        def next_step(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene] | None:
            for _ in range(20):
                op = random_operation(scene, rng, family)
                if op is not None and self._legal(scene, op):
                    return phrases.say(op, rng), pick(tuple(op.results(scene)), rng)
            return None

        return film(start, next_step, family, rng)
