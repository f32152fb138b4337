"""Pairs to look at: `show_pairs.py`, the colours of flow, the heat of token weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_runs import start, succeed

from rl.data.triplet_files import write_triplets
from rl.data.video.keyframes import MotionMeter, flow_magnitudes
from rl.report.changes import flow_picture, heat, heat_over
from rl.triplets import Triplet

RNG = np.random.default_rng(0)
WALL = np.full((64, 64, 3), 200, np.uint8)
SPOTS = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8).repeat(2, 0)[:20]


def with_spots(left: int) -> np.ndarray:
    picture = WALL.copy()
    picture[4:24, left : left + 20] = SPOTS
    return picture


def test_flow_has_the_colour_of_its_direction() -> None:
    flow = np.array([[[0, 0], [50, 0], [-50, 0], [25, 0]], [[0, 50], [0, -50], [500, 0], [0, 0]]], np.float32)
    seen = flow_picture(flow, 50.0)
    assert seen.dtype == np.uint8
    assert seen[0].tolist() == [[255, 255, 255], [255, 0, 0], [0, 255, 255], [255, 127, 127]]
    assert seen[1, 0, 1] == 255 > seen[1, 0, 0]  # down: green
    assert seen[1, 1, 2] == 255 > seen[1, 1, 0] > seen[1, 1, 1]  # up: violet
    assert seen[1, 2].tolist() == [255, 0, 0]  # no more than the full colour


def test_heat_lies_over_the_tokens_that_it_is_of() -> None:
    shades = np.array([[0.0, 1.0], [0.0, 0.0]])
    seen = heat_over(np.zeros((8, 12, 3), np.uint8), shades)
    assert seen.shape == (8, 12, 3)
    hot = seen[..., 0] > 100
    assert hot[:4, 6:].all()
    assert hot.sum() == 4 * 6
    assert heat(shades)[0].tolist() == [[0, 0, 40], [255, 90, 0]]


def test_what_happens_between_two_pictures_is_what_mining_measures() -> None:
    before, after = with_spots(10), with_spots(13)
    step, flow = MotionMeter().between(before, after)
    assert step.motion == flow_magnitudes([before, after])[0]
    assert np.hypot(flow[..., 0], flow[..., 1]).mean() == pytest.approx(step.motion, rel=1e-5)
    assert np.median(flow[8:20, 15:28, 0]) == pytest.approx(1000 * 3 / 64, rel=0.25)  # three pixels to the right
    assert not flow[40:].any()


def test_show_pairs_of_a_file(tmp_path: Path) -> None:
    """What stays has the least weight; what moves has more, where it moves; entries without a target are left out."""
    rows = [Triplet(with_spots(2), "stay", with_spots(2), task="still"), Triplet(with_spots(2), "", with_spots(40))]
    file = write_triplets([*rows, Triplet(WALL, "no target", None)], tmp_path / "data")
    command = [
        "scripts/show_pairs.py",
        "--base",
        "tabletop-chameleon",
        "--triplets",
        file,
        "--output",
        tmp_path / "out",
    ]
    assert "2 pairs; look at" in succeed(*command)
    still, moved = (json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines())
    assert (still["pair"], still["task"], still["action"], moved["task"]) == (0, "still", "stay", None)
    assert [still["max"], moved["min"]] == pytest.approx([still["min"]] * 2, abs=2e-3)
    assert still["max"] < 1 < moved["max"]
    assert (still["mean"] + moved["mean"]) / 2 == pytest.approx(1, abs=2e-3)
    assert still["motion"] == 0 < moved["motion"]
    assert json.loads((tmp_path / "out" / "left_out.jsonl").read_text())["entry"] == 2
    with Image.open(tmp_path / "out" / "sheet.jpg") as seen:
        assert seen.width == 8 * (96 + 6) + 6
    again = start(*command)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    wrong = start(*command, "--limit", 0, "--overwrite")
    assert wrong.returncode == 2
    assert "--limit must be at least 1" in wrong.stderr
    assert (tmp_path / "out" / "sheet.jpg").is_file()
