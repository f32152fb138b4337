"""Who may write into a run folder: one run at a time, the next one if nothing was finished, the same one to go on."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from rl.errors import RewindError
from rl.running import lock
from rl.running.resumption import differences
from rl.running.run_folder import claim, move_finished
from trainers.common.runs import HARMLESS, SCHEDULE, _first_rollout, harmless, processes
from trainers.dpo.arguments import DPOArguments
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.sft.arguments import RoleConfig

HOLDS = """
import sys, time
from pathlib import Path
from rl.running.command_line import run
from rl.running.run_folder import claim
def main():
    claim(Path(sys.argv[1]), "train.py", {"steps": 3}, resume=sys.argv[2] == "resume")
    (Path(sys.argv[1]) / "checkpoint-1").write_text("kept")
    print("claimed", flush=True)
    if sys.stdin.readline() == "fail\\n":
        raise ValueError("on purpose")
run(main)
"""


def holder(folder: Path, how: str = "new") -> subprocess.Popen[str]:
    """A process that has claimed a folder and waits for a line."""
    command = [sys.executable, "-c", HOLDS, str(folder), how]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


# ---- taken over


@pytest.mark.parametrize(
    "left", ["", "tensorboard/events.out.tfevents.1", "metrics.jsonl=", "a.partial", "monitors.json"]
)
def test_a_claim_without_a_finished_step_is_taken_over(
    left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    claim(run, "train.py", {"steps": 3, "batch": 10000}, resume=False)
    name, empty, _ = left.partition("=")
    if name:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("" if empty else "something")
    claim(run, "train.py", {"steps": 3, "batch": 1}, resume=False, scratch=["monitors.json"])
    assert "the run before finished nothing, so its folder is taken over" in caplog.text
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "run.lock"]
    assert json.loads((run / "run.json").read_text())["config"]["batch"] == 1
    claim(run, "train.py", {"steps": 3, "batch": 2}, resume=True)  # there is nothing that it would differ from
    with pytest.raises(RewindError, match=r"holds a run of train\.py"):
        claim(run, "label.py", {}, resume=False)


@pytest.mark.parametrize(
    "left", ["checkpoint-1/weights", "adapter/weights", "metrics.jsonl", "rounds.jsonl", "results.json", "words.jsonl"]
)
def test_a_claim_with_something_finished_is_not(left: str, tmp_path: Path) -> None:
    claim(tmp_path / "run", "train.py", {}, resume=False)
    file = tmp_path / "run" / left
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}\n")
    with pytest.raises(RewindError, match="exists: use --resume true, --overwrite"):
        claim(tmp_path / "run", "train.py", {}, resume=False, resume_flag="--resume true")
    assert file.read_text() == "{}\n"


def test_candidates_of_the_first_rollout_are_no_finished_step(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert "candidates" in _first_rollout(tmp_path / ("x" * 300))
    (tmp_path / "candidates").mkdir()
    for step in (0, 0, 1):
        assert "candidates" in _first_rollout(tmp_path)
        number = len(list((tmp_path / "candidates").iterdir()))
        pq.write_table(pa.table({"step": [step, step]}), tmp_path / "candidates" / f"part-{number}.parquet")
    assert _first_rollout(tmp_path) == ("monitors.json",)


# ---- places


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (lambda folder: folder / "file" / "run", "a part of its path is a file"),
        (lambda folder: folder / ("x" * 300), "File name too long"),
        (lambda folder: Path("/proc/run"), "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written(place: Callable[[Path], Path], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RewindError, match=sentence) as raised:
        claim(place(tmp_path), "train.py", {})
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_place(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RewindError, match=rf"cannot be written \({os.strerror(number)}\): use another one"):
        claim(tmp_path / "run", "train.py", {})


# ---- one at a time


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = holder(run)
    for wish in ({"resume": True}, {"resume": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(RewindError, match=rf"process {first.pid} is at work in the output folder"):
            claim(run, "train.py", {"steps": 3}, **wish)
    (run / "results.json").write_text("{}")
    with pytest.raises(RewindError, match=f"process {first.pid} is at work"):
        move_finished(run, "train.py")
    _, errors = first.communicate("end\n", timeout=60)
    assert first.returncode == 0, errors
    assert not (run / lock.LOCK_FILE).exists()
    again = holder(run, "resume")
    again.communicate("fail\n", timeout=60)
    assert again.returncode == 1
    assert not (run / lock.LOCK_FILE).exists()
    assert claim(run, "train.py", {"steps": 3}, resume=True) == run
    assert claim(run, "train.py", {"steps": 3}, resume=True) == run  # this process holds it
    lock.release(run)


def test_a_killed_runs_lock_is_taken_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = holder(run)
    first.send_signal(signal.SIGKILL)
    with pytest.raises(OSError):  # noqa: PT011  (it is dead, and nobody has asked for it yet)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT) and os.kill(-first.pid, 0)
    assert (run / lock.LOCK_FILE).is_file()
    claim(run, "train.py", {"steps": 3}, resume=True)
    assert json.loads((run / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "run.json"]
    first.communicate()


@pytest.mark.parametrize("text", ["", '{"host"', "of a process whose id is used again"])
def test_a_stale_lock_is_recognised(text: str, tmp_path: Path) -> None:
    if text.startswith("of"):
        text = json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "started": "long ago"})
    (tmp_path / lock.LOCK_FILE).write_text(text)
    assert lock.take(tmp_path)
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobody_knows_whether_a_process_of_another_host_runs(tmp_path: Path) -> None:
    (tmp_path / lock.LOCK_FILE).write_text(json.dumps({"host": "node-7", "pid": 1, "started": "x"}))
    with pytest.raises(
        RewindError, match=r"process 1 on the host node-7 holds .*remove .*run\.lock if it runs no longer"
    ):
        claim(tmp_path, "train.py", {})


def test_a_refused_claim_holds_nothing(tmp_path: Path) -> None:
    claim(tmp_path / "run", "train.py", {"steps": 3}, resume=False)
    (tmp_path / "run" / "weights").write_text("x")
    lock.release(tmp_path / "run")
    with pytest.raises(RewindError, match="exists"):
        claim(tmp_path / "run", "train.py", {}, resume=False)
    assert not (tmp_path / "run" / lock.LOCK_FILE).exists()


# ---- the same run


def test_other_arguments_are_named_with_both_values(tmp_path: Path) -> None:
    claim(tmp_path, "train.py", {"limit": None, "training": {"learning_rate": 0.1, "seed": 0}}, resume=False)
    (tmp_path / "weights").write_text("x")
    with pytest.raises(
        RewindError,
        match=r"other values of limit \(begun with null, now 3\), learning_rate \(begun with 0\.1, now 0\.2\):",
    ):
        claim(tmp_path, "train.py", {"limit": 3, "training": {"learning_rate": 0.2, "seed": 0}}, resume=True)


def test_harmless_arguments_may_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    claim(tmp_path, "train.py", {"training": {"max_steps": 3, "seed": 0}}, resume=False)
    (tmp_path / "weights").write_text("x")
    may = {"max_steps": "it trains for longer"}
    claim(tmp_path, "train.py", {"training": {"max_steps": 5, "seed": 0}}, resume=True, harmless=may)
    assert "goes on with another max_steps (begun with 3, now 5): it trains for longer" in caplog.text
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["config"]["training"]["max_steps"] == 5
    assert told["changes"] == [{"max_steps": [3, 5]}]
    with pytest.raises(RewindError, match=r"other values of seed \(begun with 0, now 1\)"):
        claim(tmp_path, "train.py", {"training": {"max_steps": 5, "seed": 1}}, resume=True, harmless=may)


def test_the_same_file_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.json").write_text("[]")
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    begun = {"triplets": ["data/t.json"], "rewards": ["mine.py:straight=0.5"], "idm": "tabletop-chameleon"}
    claim(Path("run"), "train.py", begun, resume=False)
    Path("run/weights").write_text("x")
    lock.release(Path("run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for triplets in ("data/t.json", "./data//t.json", "link/t.json", str(tmp_path / "data/t.json"), "~/data/t.json"):
        now = {**begun, "triplets": [triplets], "rewards": ["./mine.py:straight=0.5"]}
        claim(Path("run"), "train.py", now, resume=True)
    monkeypatch.chdir(tmp_path / "data")
    claim(
        tmp_path / "run",
        "train.py",
        {**begun, "triplets": ["t.json"], "rewards": ["../mine.py:straight=0.5"]},
        resume=True,
    )
    other = {**begun, "triplets": ["t.json"], "rewards": ["other.py:straight=0.5"]}
    with pytest.raises(RewindError, match=r'of rewards \(begun with \["mine.py:straight=0.5"\], now \["other.py'):
        claim(tmp_path / "run", "train.py", other, resume=True)
    lock.release(tmp_path / "run")


def test_differences() -> None:
    assert differences({"a": 1, "output": "x"}, {"a": 1.0, "output": "y", "resume": True}) == {}
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == {"a": ({"b": 1}, {"b": 2})}
    assert differences({"a": ["x"]}, {"a": ["x", "y"], "c": True}) == {"a": (["x"], ["x", "y"]), "c": (None, True)}
    assert differences({"a": 1}, {"a": 1, "c": False, "d": None, "e": []}) == {}  # not there yet when the run began
    assert differences({"a": 1, "c": False}, {"a": 1}) == {"c": (False, None)}


def test_the_harmless_arguments_are_arguments(tmp_path: Path) -> None:
    config = RoleConfig(output_dir=str(tmp_path))
    names = {
        field.name for kind in (RoleConfig, RewindGRPOConfig, GRPOArguments, DPOArguments) for field in fields(kind)
    }
    assert {*HARMLESS} <= names
    assert not {"learning_rate", "seed", "per_device_train_batch_size", "triplets", "optim"} & {*harmless(config)}
    assert SCHEDULE in harmless(config)["max_steps"]  # cosine
    assert SCHEDULE not in harmless(RoleConfig(output_dir=str(tmp_path), lr_scheduler_type="constant"))["max_steps"]


def test_another_number_of_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert differences(alone, processes()) == {"num_processes": (None, 2)}
    assert differences(processes(), alone) == {"num_processes": (2, None)}
    assert "num_processes" not in HARMLESS
