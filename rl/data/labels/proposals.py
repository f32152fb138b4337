"""Actions to try with pictures at hand beside those that happened there: prompts for training by reward.

A reward of an inverse model needs a source and an action, and no true target. So what is tried need not have been
filmed: every frame, the first and the second of a pair alike, takes any action that a proposer finds usual for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rl.data.labels import shards
from rl.pictures import Picture
from rl.stored import StoredPicture
from rl.triplets import Triplet
from rl.words import words_of

Words = tuple[str, ...]


@dataclass
class Frame:
    """A picture, and the words of the actions that are known to have been done with it."""

    picture: Picture
    known: set[Words] = field(default_factory=set)


def frames_of(triplets: Iterable[Triplet]) -> list[Frame]:
    """Every picture of the triplets once: all sources in their order, then the targets that are no source."""
    sources: dict[object, Frame] = {}
    targets: dict[object, Frame] = {}
    for triplet in triplets:
        frame = sources.setdefault(_key(triplet.source), Frame(triplet.source))
        if triplet.action:
            frame.known.add(tuple(words_of(triplet.action)))
        if triplet.target is not None:
            targets.setdefault(_key(triplet.target), Frame(triplet.target))
    return [*sources.values(), *(frame for key, frame in targets.items() if key not in sources)]


def _key(picture: Picture) -> object:
    return picture if isinstance(picture, StoredPicture) else id(picture)


def some_frames(frames: Sequence[Frame], count: int | None, seed: int) -> list[Frame]:
    """`count` frames at random, in their order; all of them for None, or where there are no more."""
    if count is None or count >= len(frames):
        return list(frames)
    chosen = np.random.default_rng(seed).choice(len(frames), count, replace=False)
    return [frames[number] for number in np.sort(chosen)]


def new_actions(frame: Frame, said: Sequence[tuple[Any, ...]], most: int = 1) -> list[Triplet]:
    """The first `most` of the sentences that say nothing that is known, as triplets without a target; those that say
    nothing at all are left out. A sentence comes with its log-likelihood, which becomes the score.
    """
    found: list[Triplet] = []
    seen = set(frame.known)
    for text, logprob, *_ in said:
        words = tuple(words_of(text))
        if words and words not in seen and len(found) < most:
            seen.add(words)
            found.append(Triplet(frame.picture, text, score=logprob, provenance="proposed"))
    return found


@dataclass(frozen=True)
class Prompts(shards.Shards):
    """Shards of prompts."""

    script = "propose_actions.py"
    holds = "prompts"
    may_differ = shards.LIMITS_OF_A_MACHINE
