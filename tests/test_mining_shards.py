"""`mine_videos.py` by several processes: each mines every N-th video, the last one merges, as if it was one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from script_runs import start
from test_mining_clips import files_in, mined_by_script, videos

from rl.data.video.clips import CLIPS_FILE, PAIRS_FILE
from rl.data.video.shards import Shards
from rl.errors import RewindError
from rl.running.run_folder import claim

__all__ = ["videos"]  # a fixture

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}


def mining(videos: Path, output: Path, *more: object) -> list[object]:
    arguments = ["--videos", videos, "--rule", "settled", "--image_size", 64, "--output", output]
    return ["scripts/mine_videos.py", *arguments, *more]


def merged(output: Path) -> dict[str, bytes]:
    return {name: held for name, held in files_in(output).items() if not name.startswith("shard-")}


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole") / "pairs"
    done = start(*mining(videos, output))
    assert done.returncode == 0, done.stderr
    return files_in(output)


@pytest.fixture(scope="module")
def output(videos: Path, tmp_path_factory: pytest.TempPathFactory, whole: dict[str, bytes]) -> Path:
    """Of three shards, the first of which was killed and goes on last, and the second of which was launched."""
    output = tmp_path_factory.mktemp("shards") / "pairs"
    third = start(*mining(videos, output, "--shard", "2/3"))
    assert third.returncode == 0, third.stderr
    assert "this shard is done, but 0/3 has not begun, 1/3 has not begun: the last one to end merges" in third.stdout
    killed = mined_by_script(videos, output, "--shard", "0/3", killed_at=6)  # in the middle of its second video
    assert killed.returncode == -signal.SIGKILL
    begun = (output / "shard-0-of-3" / CLIPS_FILE).read_bytes()
    assert begun.count(b"\n") == 1
    (output / "shard-0-of-3" / CLIPS_FILE).write_bytes(begun + b'{"file": "to')  # a torn line, too
    second = start(*mining(videos, output), **LAUNCHED)
    assert second.returncode == 0, second.stderr
    assert "0/3 is at work or was stopped" in second.stdout
    assert not {*merged(output)}
    assert "--resume" in start(*mining(videos, output, "--shard", "0/3")).stderr
    first = start(*mining(videos, output, "--shard", "0/3", "--resume", "--workers", 2))
    assert first.returncode == 0, first.stderr
    assert f"pairs of 6 videos in {output / PAIRS_FILE}" in first.stdout
    return output


def test_three_shards_end_with_the_bytes_of_one_process(output: Path, whole: dict[str, bytes]) -> None:
    assert merged(output) == whole
    assert {"pairs.json", "clips.jsonl", "left_out.jsonl", "sheet.png"} < {*whole}


def test_a_merge_that_was_killed_is_made_anew(
    videos: Path, output: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(output, tmp_path / "pairs")
    output = tmp_path / "pairs"
    for name in (PAIRS_FILE, CLIPS_FILE):
        (output / name).unlink()
    shutil.rmtree(output / "images" / "000002")
    (output / "images" / "000000" / "9999999.png").write_bytes(b"of another run")
    command = mining(videos, output, "--shard", "1/3")
    assert "use --resume, --overwrite" in start(*command).stderr
    done = start(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert merged(output) == whole
    one = start(*mining(videos, output, "--resume"))  # one process has nothing left to do
    assert one.returncode == 0, one.stderr
    assert merged(output) == whole

    other = start(*mining(videos, output, "--shard", "1/3", "--overwrite", "--quiet", 0.05))
    assert other.returncode == 2
    assert "shard-0-of-3 has pairs with another quiet than" in other.stderr
    assert not (output / PAIRS_FILE).exists()  # nobody takes the old result for the new one


@pytest.mark.parametrize(
    ("shard", "environment", "says"),
    [
        ("3/2", {}, "--shard takes I/N, from 0/N to N-1/N, not '3/2'"),
        ("0/3", LAUNCHED, "3 launched processes share the work by themselves: leave --shard 0/3 out"),
    ],
)
def test_refused_shards(videos: Path, tmp_path: Path, shard: str, environment: dict[str, str], says: str) -> None:
    done = start(*mining(videos, tmp_path / "out", "--shard", shard), **environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_shards_of_other_videos_or_without_their_pictures_are_not_merged(tmp_path: Path) -> None:
    files = [tmp_path / "a.mkv", tmp_path / "b.mkv"]
    for number, file in enumerate(files):
        one = Shards(tmp_path / "out", (number, 2))
        claim(one.folder, one.script, {"workers": number}, resume=True, each_process=True)
        line = {"file": str(file), "class": "x", "pairs": [[0, 7, 1.5]] if number else [], "fault": None}
        (one.folder / CLIPS_FILE).write_text(json.dumps(line) + "\n")
    assert one.last_to_end({CLIPS_FILE: 2}, {"workers": 5})
    for known, labels in (([files[0], tmp_path / "c.mkv"], ["x", "x"]), (files, ["x", "y"])):
        with pytest.raises(RewindError, match=r"shard-1-of-2 has mined .*b.mkv of class x, which is no longer"):
            one.merge(known, labels)
    with pytest.raises(RewindError, match=r"shard-1-of-2 has lost its picture images/000001/0000000.png: make it anew"):
        one.merge(files, ["x", "x"])
    assert not (tmp_path / "out" / CLIPS_FILE).exists()
