"""What a base model is pretrained on: pictures, words about them, pairs of pictures, and words alone.

No entry connects a pair of pictures with the action between them: a base knows pictures and words, not dynamics.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np

from rl.world import World, draw_task


@dataclass
class PretrainingPool:
    """Pictures and words for pretraining.

    `images_NHWC` is uint8 RGB [N, H, W, 3]; `captions[i]` holds sentences about picture i (often none); `pairs_P2` int
    [P, 2] indexes two pictures a moment apart, `pair_captions[p]` holds sentences that describe both; `texts` holds
    sentences that belong to no picture.
    """

    images_NHWC: np.ndarray
    captions: list[list[str]]
    pairs_P2: np.ndarray
    pair_captions: list[list[str]]
    texts: list[str] = field(default_factory=list)

    def all_text(self) -> list[str]:
        """Every sentence, for training a text tokenizer."""
        return [s for group in (*self.captions, *self.pair_captions) for s in group] + self.texts


def pool_from_world(world: World, num_pairs: int, num_videos: int, rng: np.random.Generator) -> PretrainingPool:
    """Scenes and their successors (which action led there is forgotten), frames of videos, and unconnected sentences.

    A world without `caption` is described by the words of actions that are possible on the scene, with a warning.
    """
    caption = getattr(world, "caption", None)
    compare, facts = getattr(world, "compare", None), getattr(world, "facts", None)
    if caption is None:
        warnings.warn(
            f"the world '{world.name}' has no caption(scene, rng): its scenes are described by the words of actions, "
            "from which an inverse dynamics model learns far less",
            stacklevel=2,
        )
    images: list[np.ndarray] = []
    captions: list[list[str]] = []
    pairs: list[tuple[int, int]] = []
    pair_captions: list[list[str]] = []
    texts: list[str] = []
    for _ in range(num_pairs):
        scene, action = draw_task(world, rng)
        outcomes = world.outcomes(scene, action)
        after = outcomes[int(rng.integers(len(outcomes)))]
        pairs.append((len(images), len(images) + 1))
        for state in (scene, after):
            images.append(world.render(state, rng))
            words = [caption(state, rng)] if caption else [action if state is scene else ""]
            captions.append([w for w in words if w] + ([facts(state, rng)] if facts else []))
        if compare is not None:
            pair_captions.append(compare(scene, after, rng))
        else:
            pair_captions.append([f"first {captions[-2][0]}. second {captions[-1][0]}"] if caption else [])
        # The sentence comes from another scene, so that it says nothing about this one.
        texts.append(draw_task(world, rng)[1])
    film = getattr(world, "video", None)
    for _ in range(num_videos if film is not None else 0):
        frames = film(rng).frames_THWC  # type: ignore[misc]
        for t in rng.choice(len(frames), size=min(6, len(frames)), replace=False):
            images.append(frames[t])
            captions.append([])
    return PretrainingPool(np.stack(images), captions, np.array(pairs), pair_captions, texts)
