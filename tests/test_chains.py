"""Triplets that follow one another, from lists by hand, from files and from a world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.data.chains import chains
from rl.data.triplet_files import read_triplets, write_triplets
from rl.errors import RewindError
from rl.evaluation.action_chains import sample_chains
from rl.triplets import Triplet
from rl.worlds import load_split


def picture(grey: int) -> np.ndarray:
    return np.full((8, 8, 3), grey, np.uint8)


def triplet(before: int, after: int | None, name: str = "") -> Triplet:
    return Triplet(picture(before), name or f"{before} to {after}", None if after is None else picture(after))


def names(found: list[list[Triplet]]) -> list[list[str]]:
    return [[triplet.action for triplet in chain] for chain in found]


def test_neighbours_are_found() -> None:
    rows = [triplet(1, 2), triplet(2, 3), triplet(3, None), triplet(7, 8)]
    assert names(chains(rows, 2)) == [["1 to 2", "2 to 3"], ["2 to 3", "3 to None"]]
    assert names(chains(rows, 3)) == [["1 to 2", "2 to 3", "3 to None"]]
    assert chains(rows, 4) == []
    found = chains(rows, 1)
    assert all(chain[0] is row for chain, row in zip(found, rows, strict=True))
    with pytest.raises(RewindError, match="at least 1 step"):
        chains(rows, 0)


def test_of_several_the_next_one_follows() -> None:
    rows = [triplet(2, 5, "early"), triplet(1, 2, "start"), triplet(2, 3, "next"), triplet(2, 4, "later")]
    assert names(chains(rows, 2)) == [["start", "next"]]
    rows[2] = triplet(9, 9, "still")
    assert names(chains(rows, 2)) == [["start", "later"]]
    assert names(chains(rows[:3], 2)) == [["start", "early"]]
    # One that leads no further is passed over for one that does.
    ahead = [triplet(1, 2), triplet(2, 3, "end"), triplet(2, 4, "on"), triplet(4, 5)]
    assert names(chains(ahead, 3)) == [["1 to 2", "on", "4 to 5"]]


def test_no_triplet_twice() -> None:
    there_and_back = [triplet(1, 2), triplet(2, 1)]
    assert names(chains(there_and_back, 2)) == [["1 to 2", "2 to 1"], ["2 to 1", "1 to 2"]]
    assert chains(there_and_back, 3) == []
    assert chains([triplet(1, 1)], 2) == []


def test_chains_survive_files(tmp_path: Path) -> None:
    """Each pair is written with pictures of its own: equal pixels, other paths, as arrays or PIL images."""
    rows = [triplet(1, 2), Triplet(Image.fromarray(picture(2)), "2 to 3", Image.fromarray(picture(3)))]
    assert names(chains(rows, 2)) == [["1 to 2", "2 to 3"]]
    assert names(chains(read_triplets(write_triplets(rows, tmp_path)), 2)) == [["1 to 2", "2 to 3"]]


def test_actions_of_a_world_can_be_carried_out() -> None:
    world = load_split("tabletop", "test")
    chains = sample_chains(world, 3, 3, 0)
    for chain in chains:
        assert len(chain.actions) == len(chain.states) == 3
        for action, states, following in zip(chain.actions, chain.states, [*chain.states[1:], None], strict=True):
            outcomes = [world.outcomes(state, action) for state in states]
            assert all(outcomes)
            assert following is None or set(following) == {s for some in outcomes for s in some}
    again = sample_chains(world, 3, 3, 0)
    assert [c.actions for c in again] == [c.actions for c in chains]
    assert (again[0].source == chains[0].source).all()


def test_a_right_way_through_a_worlds_chain() -> None:
    world, rng = load_split("tabletop", "train"), np.random.default_rng(0)
    drawn = sample_chains(world, 4, 3, 0)
    rows = [triplet for chain in drawn for triplet in chain.triplets(world, rng)]
    for chain, found in zip(drawn, chains(rows, 3), strict=True):
        assert [triplet.action for triplet in found] == chain.actions
        assert found[0].source is chain.source
        assert found[1].source is found[0].target
        assert found[0].task == world.family(chain.actions[0])  # type: ignore[attr-defined]
        for step, triplet in enumerate(found):
            assert chain.succeeded(world, step, np.asarray(triplet.target))
        assert not chain.succeeded(world, 2, chain.source)
