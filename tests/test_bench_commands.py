"""`python -m trainers.bench.commands`: a random base as a folder, scripts on it as processes, and what they took."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
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
    assert found["sample"]["command"].startswith(f"python scripts/sample.py --fdm {tmp_path / 'base-gpu-smoke'}")
    assert list((tmp_path / "sample").glob("**/*.png"))
    rows = (tmp_path / "commands.md").read_text().splitlines()
    assert rows[0].count("|") == rows[1].count("|") == rows[3].count("|") == 5
    assert ", failed: " in rows[2]
    commands.run_all("gpu-smoke", tmp_path, ["plan"])
    assert set(json.loads((tmp_path / "commands.json").read_text())) == {"plan", "sample"}


def test_refusals(tmp_path: Path) -> None:
    """A folder of somebody else is left alone; what all commands need must come to be."""
    (tmp_path / "sample").mkdir()
    with pytest.raises(RewindError, match=r"holds something else than commands .*: give an empty --output"):
        commands.run_all("gpu-smoke", tmp_path)
    assert (tmp_path / "sample").is_dir()
    (tmp_path / "commands.json").write_text("{}")
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "triplets.json").write_text("[]")
    with pytest.raises(RewindError, match=r"trainers.bench.random_base --preset huge .* failed: .*base.log"):
        commands.run_all("huge", tmp_path)


def test_how_a_command_ends(tmp_path: Path) -> None:
    """Its last line, its signal or its time; what it has started ends with it."""
    log = tmp_path / "log"
    assert commands._run(["-c", "print('well')"], log, 60)["failed"] is None
    assert commands._run(["-c", "print('a | b'); raise SystemExit(3)"], log, 60)["failed"] == "a | b"
    told = {"sample": {"seconds": 1.0, "peak_gib": None, "failed": "a | b"}}
    assert commands.table(told).splitlines()[-1] == "| `sample` | 1, failed: a / b |  |  |"
    assert commands._run(["-c", "import os; os.kill(os.getpid(), 9)"], log, 60)["failed"] == "ended by signal 9"
    child = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    for limit in (3, 15, 60):  # on a busy machine it takes its time to begin
        assert commands._run(["-c", child], log, limit)["failed"] == f"it had not ended after {limit} s"
        if log.read_text().strip():
            break
    assert ended(int(log.read_text()))


def ended(pid: int) -> bool:
    """Whether a process that was killed is gone, or waits to be waited for: it dies when the kernel comes to it."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_what_training_logged(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "train_runtime": 5.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = commands._logged(tmp_path)
    assert (found["step_seconds"], found["logged"]["loss"]) == (2.5, 2.0)
    told = {"train_fdm": {"seconds": 9.6, "peak_gib": 34.04, "failed": None, **found}}
    assert commands.table(told).splitlines()[-1] == "| `train_fdm` | 10 | 2.5 | 34.0 |"
    assert commands._logged(tmp_path / "none") == {}
