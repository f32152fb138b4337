"""How scripts end: below the progress bar, without a traceback for `| head`, out of the process group."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from rl.running.ending import leave_group

INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from tqdm.auto import tqdm
from rl.running.command_line import run
from rl.running.run_folder import claim
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
def main():
    if sys.argv[2] != "no claim":
        claim(Path(sys.argv[1]), "x.py", {}, resume=None if sys.argv[2] == "none" else False, resume_flag=sys.argv[2])
    if sys.argv[3:]:
        (Path(sys.argv[1]) / sys.argv[3]).mkdir()
    global bar
    bar = tqdm(total=10, file=sys.stderr)
    bar.update(3)
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
run(main)
"""


@pytest.mark.parametrize("kept", [[], ["checkpoint-8"]])
@pytest.mark.parametrize("flag", ["--resume true", "--resume", "none", "no claim"])
def test_ctrl_c_is_said_below_the_bar(flag: str, kept: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "run"), flag, *kept]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGINT
    then = f"; the same command with {flag} goes on from there" if flag.startswith("--") else ""
    if flag == "--resume true" and not kept:
        then = f", no checkpoint yet (--save_steps): the same command with {flag} trains from the first step again"
    assert done.stderr.splitlines()[-1] == f"interrupted: what has been saved stays{then}"
    assert "3/10" in done.stderr


@pytest.mark.parametrize(
    "command",
    ["scripts/train_grpo.py --help", "-c 'from rl.running.command_line import run; run(lambda: print(\"x\" * 10**6))'"],
)
def test_a_reader_that_leaves_is_no_traceback(command: str) -> None:
    line = f"set -o pipefail; {sys.executable} {command} | head -c 10"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (len(done.stdout), done.stderr) == (10, "")
    assert done.returncode in ({128 + signal.SIGPIPE} if "10**6" in command else {0, 128 + signal.SIGPIPE})


def test_a_broken_pipe_of_something_else_is_an_error() -> None:
    code = "from rl.running.command_line import run\ndef main(): raise BrokenPipeError('the judge')\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "BrokenPipeError: the judge" in done.stderr


@pytest.mark.parametrize("ended", [True, False])
def test_a_process_group_is_left(ended: bool, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    leave_group(ended)
    assert not torch.distributed.is_initialized()
    leave_group(ended)  # there is none
