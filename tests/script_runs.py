"""Scripts as a user starts them, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import ROOT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["trainers.studies.demo.job", "trainers.dpo.recipe", "trainers.best_of_n.recipe", "matplotlib"]
)


def start(*arguments: object, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, as `python SCRIPT ...` from the root of the project.

    It is forked from a process that has imported the libraries already, which takes longer than most tests; a changed
    environment gets a fresh interpreter.
    """
    argv = list(map(str, arguments))
    if environment:
        command, env = [sys.executable, *argv], {**os.environ, **environment}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = FORKS.Process(target=_run_script, args=(argv, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{argv} did not end: {err.read_text()}")
        return subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text())


def _run_script(argv: list[str], out: Path, err: Path) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def succeed(*arguments: object) -> str:
    done = start(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
