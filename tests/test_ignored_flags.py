"""Flags of evaluate.py and audit_reward.py that would be ignored are refused, before anything is opened."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from rl.errors import RewindError

TRIPLETS = ["--triplets", "none.json"]


@pytest.mark.parametrize(
    ("script", "flags", "sentence"),
    [
        ("evaluate", [*TRIPLETS, "--num_scenes", "50"], "--num_scenes is about a world, .* or --limit for the first"),
        ("evaluate", [*TRIPLETS, "--num_ceiling", "50"], "--num_ceiling is about a world"),
        ("evaluate", [*TRIPLETS, "--world", "tabletop"], "--world is about a world"),
        ("evaluate", [*TRIPLETS, "--split", "test"], "--split is about a world"),
        ("evaluate", ["--limit", "5"], "--limit is about --triplets, .* give --num_scenes"),
        ("evaluate", ["--rewards", "copy_penalty"], "on a world --rewards choose .* give --best_of 8"),
        ("audit_reward", [*TRIPLETS, "--num_scenes", "9"], "--num_scenes is about --fdm: give that too"),
        ("audit_reward", [*TRIPLETS, "--best_of", "9"], "--best_of is about --fdm"),
        ("audit_reward", [*TRIPLETS, "--queries", "99"], "--queries is about --fdm"),
        ("audit_reward", [*TRIPLETS, "--split", "train"], "--split is about --world"),
    ],
)
def test_what_would_be_ignored(
    script: str, flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = ["--fdm", "none"] if script == "evaluate" else ["--idm", "none", "--rewards", "copy_penalty"]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *model, *flags, "--output", str(tmp_path / "out")])
    with pytest.raises(RewindError, match=sentence):
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["main"]()
    assert not (tmp_path / "out").exists()
