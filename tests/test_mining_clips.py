"""A run of `mine_videos.py` over many clips: killed and resumed, in several processes, with a bad clip among them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.data.triplet_files import read_triplets
from rl.data.video.clips import Miner, classes_of, mine_clips
from rl.data.video.keyframes import Mining
from rl.data.video.video_files import write_video
from rl.errors import RewindError
from rl.worlds.tabletop import Tabletop

ROOT = Path(__file__).parent.parent
KILLED = """
import os, runpy, signal, sys
import rl.data.video.clips as clips
write, seen = clips.to_image, []
def to_image(picture):
    seen.append(picture)
    if len(seen) == {picture}:  # in the middle of a clip
        os.kill(os.getpid(), signal.SIGKILL)
    return write(picture)
clips.to_image = to_image
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips in two classes, the third of which is no video."""
    folder = tmp_path_factory.mktemp("clips") / "videos"
    rng = np.random.default_rng(3)
    for number in range(6):
        write_video(Tabletop().video(rng).frames_THWC, folder / ("ab"[number % 2]) / f"{number}.mkv")
    (folder / "a" / "2.mkv").write_bytes(b"no video")
    return folder


def mined_by_script(videos: Path, output: Path, *more: object, killed_at: int = 0) -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / "scripts" / "mine_videos.py")]
    start = ["-c", KILLED.format(picture=killed_at), *script] if killed_at else script
    arguments = ["--videos", videos, "--rule", "settled", "--image_size", 64, "--output", output, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def files_in(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for its configuration, which names the folder."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", "run.lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def test_a_killed_run_goes_on_to_the_same_bytes_and_so_do_workers(videos: Path, tmp_path: Path) -> None:
    done = mined_by_script(videos, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr
    whole = files_in(tmp_path / "whole")
    (left,) = whole["left_out.jsonl"].splitlines()  # one bad file among many
    assert json.loads(left)["file"].endswith("2.mkv")
    entries = json.loads(whole["pairs.json"])
    assert {entry["class"] for entry in entries} == {"a", "b"}
    assert len(read_triplets(tmp_path / "whole" / "pairs.json", named=False, with_targets=True)) == len(entries)

    killed = mined_by_script(videos, tmp_path / "killed", killed_at=12)
    assert killed.returncode == -signal.SIGKILL
    begun = (tmp_path / "killed" / "clips.jsonl").read_bytes()
    assert begun.count(b"\n") in range(1, 5)
    assert not (tmp_path / "killed" / "pairs.json").exists()
    (tmp_path / "killed" / "clips.jsonl").write_bytes(begun + b'{"file": "to')  # a torn line, too
    assert "--resume" in mined_by_script(videos, tmp_path / "killed").stderr
    resumed = mined_by_script(videos, tmp_path / "killed", "--resume", "--workers", 2)
    assert resumed.returncode == 0, resumed.stderr
    assert files_in(tmp_path / "killed") == whole


class Dies(Miner):
    def __call__(self, number: int, file: Path, label: str) -> dict[str, Any]:
        if number == 2:
            os._exit(9)
        return {"file": str(file), "class": label, "pairs": [], "fault": None}


def test_a_worker_that_dies_is_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.mkv" for number in range(5)]
    miner = Dies(tmp_path, Mining(), 64)
    with pytest.raises(RewindError, match=r"a worker process died.*--resume"):
        list(mine_clips(miner, files, ["x"] * 5, workers=2))
    lines = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in files[: len(lines)]]
    assert len(lines) <= 2


def test_a_run_goes_on_with_the_same_videos_alone(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text('{"file": "a.mkv", "class": "x", "pairs": [], "fault": null}\n')
    miner = Miner(tmp_path, Mining(), 64)
    assert len(list(mine_clips(miner, [Path("a.mkv")], ["x"]))) == 1
    with pytest.raises(RewindError, match="lists other videos"):
        list(mine_clips(miner, [Path("b.mkv")], ["x"]))


def test_classes_come_from_folders_or_a_table(tmp_path: Path) -> None:
    files = [tmp_path / "videos" / "one" / name for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")]
    assert classes_of(files, None) == (["one"] * 4, 0)
    by_name = {"videos/one/a.mp4": "push", "b.mp4": "pull", "c": "lift", "e.mp4": "drop"}
    (tmp_path / "classes.json").write_text(json.dumps(by_name))
    (tmp_path / "classes.csv").write_text("class,file\n" + "".join(f"{v},{k}\n" for k, v in by_name.items()))
    for name in ("classes.json", "classes.csv"):
        assert classes_of(files, tmp_path / name) == (["push", "pull", "lift", "one"], 1)
    for text, says in (
        ("[1]", "JSON object"),
        ("{", "cannot be read"),
        ('{"z": "x"}', "names none of .* by its path from"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(RewindError, match=says):
            classes_of(files, tmp_path / "bad.json")
    (tmp_path / "bad.csv").write_text("name,class\na,b\n")
    with pytest.raises(RewindError, match="needs columns 'file' and 'class', and has name, class"):
        classes_of(files, tmp_path / "bad.csv")
