"""The stages of `scripts/alternate.py` as processes: their devices, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from trainers.alternate import rounds
from trainers.alternate.rounds import run_command
from trainers.alternate.settings import Settings


def test_a_stage_of_several_processes_leaves_devices_to_their_launcher(tmp_path: Path) -> None:
    opening = {"device": "cuda:1", "compile": True, "dtype": "bfloat16"}
    one = Settings("fdm", "idm", tmp_path / "pairs.json", tmp_path, opening=opening)
    several = replace(one, launch=("accelerate", "launch"))
    for asked, named in ((one, ["--device", "cuda:1", "--compile", "--dtype"]), (several, ["--compile", "--dtype"])):
        label = asked.label(1, "idm", tmp_path / "pairs.json", tmp_path / "label")
        assert [word for word in label if word in ("--device", "cuda:1", "--compile", "--dtype")] == named
        assert "--link_pictures" in label
        train = asked.train("fdm", 1, "fdm", "idm", tmp_path / "named.json", tmp_path / "trained")
        assert not {"--device", "--compile"} & {*train}


def test_who_ends_the_rounds_ends_their_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stage.py").write_text(
        "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(rounds, "SCRIPTS", tmp_path)
    file = tmp_path / "pid"

    def end() -> None:
        while not (file.is_file() and file.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=end)
    waiting.start()
    with pytest.raises(SystemExit) as ended:
        run_command(["stage.py", str(file)])
    waiting.join()
    assert ended.value.code == 128 + signal.SIGTERM
    assert not psutil.pid_exists(int(file.read_text()))
