"""The study of search: chains of actions that can be carried out, and its tables by hand."""

from __future__ import annotations

import numpy as np

from rl.worlds import load_split
from trainers.search_study import BEAM, BEAM_CANDIDATES, GREEDY_CANDIDATES, STEPS, sample_chains, table


def test_chains_can_be_carried_out() -> None:
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


def test_beam_and_greedy_steps_cost_the_same() -> None:
    assert STEPS * GREEDY_CANDIDATES == BEAM_CANDIDATES * (1 + (STEPS - 1) * BEAM)


def test_tables_by_hand() -> None:
    rates = {"idm_likelihood": (0.2, 0.5), "idm_margin": (0.2, 0.65), "oracle": (0.2, 0.8)}
    best = {f"{name} {n}": [rate] * 2 for name, both in rates.items() for n, rate in zip((1, 8), both, strict=True)}
    steps = {"greedy": [0.0, 1.0], "beam of 2": [1.0, 1.0]}
    refined = {"r, plain 8": [0.0, 1.0], "r, refined 8": [0.0, 0.0], "r, refined 8: cost": [7.0, 8.0]}
    refined["r, plain 8: cost"] = [8.0, 8.0]
    lines = table([{"best_of_n": best, "rollout": steps, "refinement": refined}]).splitlines()
    assert "| idm_likelihood | 20.0 | 50.0 | 50 % |" in lines
    assert "| idm_margin | 20.0 | 65.0 | 75 % |" in lines
    assert "| beam of 2 | 100.0 | +50.0 (+0.0 to +100.0) |" in lines
    assert "| r, N 8 | 50.0 | 0.0 | -50.0 (-100.0 to +0.0) | 7.5 |" in lines
    assert np.all([line.startswith("|") or not line for line in lines])
