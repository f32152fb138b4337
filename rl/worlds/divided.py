"""A world without splits of its own, divided so that no case of one split is ever drawn in another."""

from __future__ import annotations

import hashlib
import warnings
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from rl.errors import RewindError
from rl.world import Video, draw_task

SHARES = {"train": 0.75, "validation": 0.10, "test": 0.15}
"""Of all cases that a world can draw."""
TRIES = 1000
"""Draws for a case, or clips filmed, until one is of the split."""


class DividedWorld:
    """A world whose cases (a scene and an action on it) are dealt out to the splits in `SHARES`.

    A digest of what a model sees of a case decides: the picture of its scene, drawn with a fixed generator, and the
    words of its action. So a case is of the same split in every process and whatever the seed, scenes need no stable
    `repr`, and two scenes that look alike are one. Beside this, every split draws from a stream of its own.

    Everything else is the world's: `sample_scene` and `sample_action` alone draw no case and are not restricted.

    Args:
        world: a `World`.
        split: one of `SHARES`.

    Raises:
        RewindError: no such split.
    """

    video: Callable[[np.random.Generator], Video]
    """There if the world has one."""

    def __init__(self, world: Any, split: str = "train") -> None:
        if split not in SHARES:
            raise RewindError(
                f"the world '{world.name}' has no split '{split}': it is divided into {', '.join(SHARES)}"
            )
        self.world, self.split_name = world, split
        if hasattr(world, "video"):
            self.video = self._film

    def __getattr__(self, name: str) -> Any:
        if name == "world":  # not there yet, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self.world, name)

    def split(self, name: str) -> DividedWorld:
        """The same world restricted to another split."""
        return DividedWorld(self.world, name)

    def check(self) -> None:
        """Try whether the world can be divided, before anything is made from it.

        Raises:
            RewindError: pictures that do not come from the generator, too few cases.
        """
        scene = self.world.sample_scene(np.random.default_rng(0))
        first, second = (self.world.render(scene, np.random.default_rng(0)) for _ in range(2))
        if not np.array_equal(first, second):
            raise RewindError(
                f"render(scene, rng) of the world '{self.world.name}' draws two pictures from equal generators, so its "
                "cases cannot be told apart: take all that varies from rng, or give the world a split(name)"
            )
        for name in SHARES:
            self.split(name).sample_task(np.random.default_rng(0))

    def holds(self, scene: Any, action: str) -> bool:
        """Whether a case is of this split."""
        return self._split_of(scene, action)[0] == self.split_name

    def sample_task(self, rng: np.random.Generator) -> tuple[Any, str]:
        """A case of this split.

        Raises:
            RewindError: none in `TRIES` draws.
        """
        stream, seen = self._stream(rng), set()
        for _ in range(TRIES):
            scene, action = draw_task(self.world, stream)
            split, key = self._split_of(scene, action)
            if split == self.split_name:
                return scene, action
            seen.add(key)
        raise RewindError(
            f"the world '{self.world.name}' has too few cases (scene and action) to be divided: {len(seen)} distinct "
            f"ones were found in {TRIES} draws, and 1 of the split '{self.split_name}' was asked for: give it more "
            "scenes, or a split(name) of its own"
        )

    def _film(self, rng: np.random.Generator) -> Video:
        """A clip that shows no case of another split, as far as its `truth` tells.

        Raises:
            RewindError: none among `TRIES` clips.
        """
        stream = self._stream(rng)
        for _ in range(TRIES):
            video: Video = self.world.video(stream)
            if not video.truth:
                warnings.warn(
                    f"videos of the world '{self.world.name}' do not tell what they show (Video.truth), so it may be "
                    "cases of any split",
                    stacklevel=2,
                )
            if all(self.holds(part.source, part.action) for part in video.truth):
                return video
        raise RewindError(
            f"each of {TRIES} videos of the world '{self.world.name}' shows a case of another split than "
            f"'{self.split_name}': show fewer actions in one, or give the world a split(name) of its own"
        )

    def _split_of(self, scene: Any, action: str) -> tuple[str, bytes]:
        """The split that a case is of, and its digest."""
        picture = np.asarray(self.world.render(scene, np.random.default_rng(0)))
        digest = hashlib.blake2b(picture.tobytes() + action.encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "little") / 2**64
        return list(SHARES)[bisect(list(accumulate(SHARES.values()))[:-1], place)], digest

    def _stream(self, rng: np.random.Generator) -> np.random.Generator:
        """Randomness of this split's own: equal generators give each split another stream."""
        return np.random.default_rng([*rng.integers(2**32, size=4).tolist(), list(SHARES).index(self.split_name)])
