"""`python -m trainers.bench.commands`: a random base as a folder, scripts on it as processes, and what they took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.errors import RewindError
from trainers.bench import commands


def test_scripts_on_a_random_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and triplets are made, one command after the other is run, and one that fails says why."""
    draw = "scripts/sample.py --fdm {base} --triplets {world} --limit 1 --num_samples 1 --output {out}/sample"
    monkeypatch.setattr(commands, "COMMANDS", {"plan": "scripts/plan.py --config none.yaml", "sample": draw})
    found = commands.run_all("gpu-smoke", tmp_path)
    assert json.loads((tmp_path / "commands.json").read_text()) == found
    assert "none.yaml" in found["plan"]["failed"]
    assert found["sample"]["failed"] is None
    assert found["sample"]["command"].startswith(f"python scripts/sample.py --fdm {tmp_path / 'base'}")
    assert list((tmp_path / "sample").glob("**/*.png"))
    rows = (tmp_path / "commands.md").read_text().splitlines()
    assert rows[0].count("|") == rows[1].count("|") == rows[3].count("|") == 5
    assert ", failed: " in rows[2]


def test_what_all_need_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "triplets.json").write_text("[]")
    with pytest.raises(RewindError, match=r"trainers.bench.random_base --preset huge .* failed: .*base.log"):
        commands.run_all("huge", tmp_path)


def test_what_training_logged(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "train_runtime": 5.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = commands._logged(tmp_path)
    assert (found["step_seconds"], found["logged"]["loss"]) == (2.5, 2.0)
    told = {"train_fdm": {"seconds": 9.6, "peak_gib": 34.04, "failed": None, **found}}
    assert commands.table(told).splitlines()[-1] == "| `train_fdm` | 10 | 2.5 | 34.0 |"
    assert commands._logged(tmp_path / "none") == {}
