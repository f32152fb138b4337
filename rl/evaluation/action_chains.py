"""Chains of actions in a world: what several steps are trained on and measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl.errors import RewindError
from rl.triplets import Triplet
from rl.world import World, draw_task, in_split

TRIES, TRIES_A_STEP = 10_000, 20
"""Draws in a row that lead to no chain, and for an action that is of the split, before it is given up."""


@dataclass(frozen=True)
class Chain:
    """Actions to be carried out one after the other, from a picture uint8 [H, W, 3].

    `states[k]` are the scenes that are right before action k: one at first, then all that may rightly have come about.
    """

    source: np.ndarray
    actions: list[str]
    states: list[list[Any]]

    def succeeded(self, world: World, step: int, image: np.ndarray) -> bool:
        """Whether a picture, uint8 [H, W, 3], is a right outcome of the actions up to `step`, counted from 0."""
        return any(world.judge(state, self.actions[step], image).success for state in self.states[step])

    def triplets(self, world: World, rng: np.random.Generator) -> list[Triplet]:
        """A right way through the chain, its outcomes drawn: each triplet starts from the picture of the one before."""
        family = getattr(world, "family", lambda action: None)
        (scene,), picture = self.states[0], self.source
        found = []
        for action in self.actions:
            outcomes = world.outcomes(scene, action)
            scene = outcomes[int(rng.integers(len(outcomes)))]
            after = world.render(scene, rng)
            found.append(Triplet(picture, action, after, task=family(action), provenance="world"))
            picture = after
        return found


def sample_chains(
    world: World, count: int, length: int, seed: int | Sequence[int], most_states: int = 16
) -> list[Chain]:
    """`count` chains of actions, each possible on every scene that the actions before it may rightly lead to.

    Each action on each of these scenes is a case of the world's split, where the world can tell.

    Raises:
        RewindError: `TRIES` draws in a row that led to no chain.
    """
    rng = np.random.default_rng(seed)
    chains: list[Chain] = []
    failed = 0
    while len(chains) < count:
        failed += 1
        if failed > TRIES:
            raise RewindError(
                f"the world '{world.name}' has too few chains of {length} actions: {len(chains)} were found, {count} "
                f"asked for, and the last {TRIES} draws led to none"
            )
        scene, action = draw_task(world, rng)
        actions, states = [action], [[scene]]
        while len(actions) < length:
            ends = _outcomes(world, states[-1], actions[-1])
            if not 0 < len(ends) <= most_states:
                break
            following = _next_action(world, ends, rng)
            if following is None:
                break
            states.append(ends)
            actions.append(following)
        if len(actions) == length and _outcomes(world, states[-1], actions[-1]):
            chains.append(Chain(world.render(scene, rng), actions, states))
            failed = 0
    return chains


def _next_action(world: World, scenes: Sequence[Any], rng: np.random.Generator) -> str | None:
    """An action on one of some scenes that is a case of the world's split on all of them; None if none was drawn."""
    for _ in range(TRIES_A_STEP):
        action = world.sample_action(scenes[int(rng.integers(len(scenes)))], rng)
        if all(in_split(world, scene, action) for scene in scenes):
            return action
    return None


def _outcomes(world: World, scenes: Sequence[Any], action: str) -> list[Any]:
    """All right outcomes of an action on any of some scenes; empty if it is impossible on one of them."""
    each = [world.outcomes(scene, action) for scene in scenes]
    return list(dict.fromkeys(s for outcomes in each for s in outcomes)) if all(each) else []
