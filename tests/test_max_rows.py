"""`--max_rows`: on every script that draws, scores, encodes or decodes, and in Python."""

from __future__ import annotations

import argparse
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from conftest import make_tiny
from test_memory import CPU

from rl.errors import RewindError
from rl.models import memory
from rl.models.costs import Cost
from rl.models.memory import rows_that_fit
from rl.models.opening import load_fdm, load_idm, load_idm_beside
from rl.models.saving import save_base
from rl.running.model_flags import add_model_flags, opening


@pytest.mark.parametrize("script", ["encode_images", "show_pairs"])
def test_scripts_that_only_encode_have_it_too(script: str) -> None:
    parser = import_module(f"scripts.{script}").parser()
    known = parser._option_string_actions
    assert ("--max_rows" in known, "--compile" in known) == (True, False)


def test_max_rows_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts whose models are opened in many places bound them all, whatever a call asks for."""
    monkeypatch.setitem(memory._of_this_process, "max_rows", None)
    cost = Cost(prompt=0, row=1)
    memory.at_most(3)
    assert [rows_that_fit(cost, 4, CPU, max_rows=most) for most in (None, 2, 6)] == [3, 2, 3]
    assert make_tiny().pictures_at_once(64) == 3
    with pytest.raises(RewindError, match="max_rows must be at least 1, not 0"):
        memory.at_most(0)
    memory.at_most(None)
    assert rows_that_fit(cost, 4, CPU, max_rows=6) == 6


OF_MANY_PLACES = {
    **dict.fromkeys(("demo", "reproduce"), ""),
    **dict.fromkeys(("study_alternation", "study_grpo", "study_methods", "study_search"), "--output out"),
    "pretrain_base": "--world tabletop --output out",
}


@pytest.mark.parametrize("script", OF_MANY_PLACES)
def test_studies_and_recipes_hand_max_rows_on(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they do anything else."""
    module = import_module(f"scripts.{script}")

    def at_most(max_rows: int) -> None:
        raise RewindError(f"{max_rows} rows were asked for")

    monkeypatch.setattr(memory, "at_most", at_most)
    monkeypatch.setattr("sys.argv", [script, *OF_MANY_PLACES[script].split(), "--max_rows", "3"])
    with pytest.raises(RewindError, match="3 rows were asked for"):
        module.main()


def test_max_rows_of_flags_and_of_the_door(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_model_flags(parser)
    assert opening(parser.parse_args(["--max_rows", "3"])) == {"max_rows": 3}
    assert opening(parser.parse_args([])) == {}
    with pytest.raises(RewindError, match="--max_rows must be at least 1, not 0"):
        opening(parser.parse_args(["--max_rows", "0"]))
    with warnings.catch_warnings():
        save_base(make_tiny(), tmp_path / "base", {})
    fdm = load_fdm(tmp_path / "base", max_rows=3)
    assert fdm.max_rows == fdm.backbone.max_rows == 3
    assert load_idm(tmp_path / "base", fdm.backbone).max_rows is None  # but its backbone's are 3
    beside = load_idm_beside(tmp_path / "base", fdm.backbone, max_rows=2)
    assert (beside.max_rows, fdm.backbone.max_rows) == (2, 3)
    with pytest.raises(RewindError, match="max_rows must be at least 1, not 0"):
        load_idm(tmp_path / "base", max_rows=0)
