"""The study of search: equal costs, and its tables by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl.errors import RewindError
from trainers.studies.search import BEAM, BEAM_CANDIDATES, GREEDY_CANDIDATES, REWARDS, STEPS, jobs
from trainers.studies.search_page import page_of


def test_beam_and_greedy_steps_cost_the_same() -> None:
    assert STEPS * GREEDY_CANDIDATES == BEAM_CANDIDATES * (1 + (STEPS - 1) * BEAM)


def results(runs: list[dict[str, Any]], second: list[str]) -> dict[str, Any]:
    """What the script keeps, with cases that can be checked by hand."""
    each = [{"run": f"runs/{n}", "seed": n, "world": "tabletop", "cases": cases} for n, cases in enumerate(runs)]
    told = {"command": "python x.py", "system": "sft", "idm": "idm", "scenes": 2, "candidates": 8, "second_idm": second}
    return {**told, "versions": {"python": "3.11"}, "runs": each}


def test_the_page_of_one_run_by_hand() -> None:
    rates = {"idm_likelihood": (0.2, 0.5), "idm_margin": (0.2, 0.65), "oracle": (0.2, 0.8)}
    best = {f"{name} {n}": [rate] * 2 for name, both in rates.items() for n, rate in zip((1, 8), both, strict=True)}
    steps = {"greedy": [0.0, 1.0], "beam of 2": [1.0, 1.0]}
    refined = {"r, plain 8": [0.0, 1.0], "r, refined 8": [0.0, 0.0], "r, refined 8: cost": [7.0, 8.0]}
    refined["r, plain 8: cost"] = [8.0, 8.0]
    page = page_of(results([{"best_of_n": best, "rollout": steps, "refinement": refined}], []), "found.json")
    lines = page.splitlines()
    assert "Written by `python x.py` from `found.json`; not by hand." in lines
    assert "| `idm_likelihood` | 20.0 | 50.0 |" in lines
    assert "| `idm_likelihood` | 50.0 | +30.0 (+30.0 to +30.0) |  | 50 % |" in lines
    assert "| `idm_margin` | 65.0 | +45.0 (+45.0 to +45.0) | +15.0 (+15.0 to +15.0) | 75 % |" in lines
    assert "| beam of 2 | 100.0 | +50.0 (+0.0 to +100.0) | +50.0 (+0.0 to +100.0) |" in lines
    assert "| r, N 8 | 50.0 | 0.0 | -50.0 (-100.0 to +0.0) | 7.5 |" in lines
    assert "No second inverse model was given (`--second_idm`), so there is no row for `ensemble`." in page
    assert "| `ensemble`" not in page


def test_the_page_of_several_runs_by_hand() -> None:
    """Seed 0 gains on one of its two scenes, seed 1 on neither: the scenes of a run vary, the runs do not."""
    names = ("idm_likelihood", "ensemble", "oracle")
    first = {f"{name} {n}": [0.0, 0.0] for name in names for n in (1, 2, 4)}
    second = {name: [1.0, 0.0] for name in first}
    gains = {"ensemble 4": [0.0, 1.0], "oracle 4": [1.0, 1.0]}
    runs = [{"best_of_n": first | gains}, {"best_of_n": second | {"oracle 4": [1.0, 1.0]}}]
    for run, area, wrong in zip(runs, (0.75, 0.4), (0.1, 0.2), strict=True):
        run["best_of_n"] |= {"calibration auc": [area], "calibration wrong": [wrong]}
    page = page_of(results(runs, ["judge_idm"]), "found.json")
    lines = page.splitlines()
    assert "wrong reward than for a right one in 75 %, 40 % of the pairs" in page
    assert "Wrong are 10 %, 20 % of the rewards" in page
    assert "seeds 0, 1, 2 test scenes each" in page
    assert "| `ensemble` | 25.0 | 25.0 | 50.0 |" in lines  # N 1, 2, 4; means of the runs
    # The mean of two draws of [0, 1] is 0, 1/2 or 1 (1/4, 1/2, 1/4); seed 1 adds 0, and half of that is the mean.
    gain = "+25.0 (+0.0 to +50.0)"
    assert f"| `ensemble` | 50.0 | 50.0 | {gain} | {gain} | 33 % |" in lines  # of 100 - 25 points
    assert "| `oracle` | 100.0 | 100.0 | +75.0 (+50.0 to +100.0) |  | 100 % |" in lines
    assert "over the run's inverse model and `judge_idm`" in page


def run_folder(path: Path, seed: int, world: str = "tabletop") -> Path:
    for name in ("", "idm", "sft"):
        (path / name).mkdir(parents=True)
        (path / name / "run.json").write_text(json.dumps({"config": {"seed": seed, "world": world}}))
    return path


def test_runs_are_looked_at_first(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path / "a", 0), run_folder(tmp_path / "b", 1)
    (first / "other").mkdir()
    found = jobs([first, second], "sft", [str(first / "other")])
    assert [job.seed for job in found] == [0, 1]
    assert found[1].second_idms == (first / "other",)
    assert jobs([first], "sft", ["other"])[0].second_idms == (first / "other",)
    with pytest.raises(RewindError, match="b has no 'idm' and 'grpo'"):
        jobs([second], "grpo")
    with pytest.raises(RewindError, match="b has no 'idm_on_video' and 'sft'"):
        jobs([second], "sft", idm="idm_on_video")
    with pytest.raises(RewindError, match=r"no inverse model other, neither in .*b nor as a folder"):
        jobs([first, second], "sft", ["other"])
    with pytest.raises(RewindError, match=r"a and .*c are both of seed 0, so of the same test scenes"):
        jobs([first, run_folder(tmp_path / "c", 0)], "sft")
    with pytest.raises(RewindError, match=r"a is of the world tabletop and .*d of lamp"):
        jobs([first, run_folder(tmp_path / "d", 2, "lamp")], "sft")


def test_the_fitted_mix_is_searched_by_where_every_run_has_one(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path / "a", 0), run_folder(tmp_path / "b", 1)
    (first / "sft" / "reward.json").write_text("{}")
    assert [job.rewards for job in jobs([first, second], "sft")] == [REWARDS, REWARDS]
    (second / "sft" / "reward.json").write_text("{}")
    assert [job.rewards for job in jobs([first, second], "sft")] == [(*REWARDS, "fitted")] * 2
    (second / "sft" / "reward.json").write_text('{"idm": "/elsewhere/run/idm_on_video"}')
    with pytest.raises(RewindError, match="was fitted with 'idm_on_video', not 'idm': give --idm idm_on_video"):
        jobs([first, second], "sft")
