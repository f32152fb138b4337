"""The study of search: equal costs, and its tables by hand."""

from __future__ import annotations

import numpy as np

from trainers.search_study import BEAM, BEAM_CANDIDATES, GREEDY_CANDIDATES, STEPS, table


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
