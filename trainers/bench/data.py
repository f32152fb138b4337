"""Data without a model: mining a video against only decoding it, and selection from many labels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rl.data.labels.selection import select_stratified
from rl.data.video.keyframes import Mining
from rl.data.video.mining import mine
from rl.data.video.video_files import frames_of, write_video
from trainers.bench.measure import Size, seconds


def ours(size: Size) -> dict[str, Any]:
    return _on_a_video(lambda path: mine(path, Mining(), size["pixels"]), size)


def dis(size: Size) -> dict[str, Any]:
    """The same with the faster flow."""
    return _on_a_video(lambda path: mine(path, Mining(flow="dis"), size["pixels"]), size)


def baseline(size: Size) -> dict[str, Any]:
    return _on_a_video(lambda path: sum(1 for _ in frames_of(path)), size)


def select(size: Size) -> dict[str, Any]:
    """The stratified choice of 7,000 from labels of 400 classes."""
    rng = np.random.default_rng(0)
    scores, classes = rng.normal(size=size["labels"]), rng.integers(0, 400, size["labels"])
    return {"seconds": seconds(lambda: select_stratified(scores, classes, 7000), size["repeats"])}


def _on_a_video(function: Callable[[Path], Any], size: Size) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mkv"
        write_video(moving_square(size["frames"], size["pixels"]), path)
        return {"seconds": seconds(lambda: function(path), size["repeats"])}


def moving_square(frames: int, side: int) -> np.ndarray:
    """A bright square that crosses a textured ground: uint8 [T, side, side, 3]."""
    ground = np.random.default_rng(0).integers(60, 120, (side, side, 3), dtype=np.uint8)
    film = np.repeat(ground[None], frames, 0)
    for t in range(frames):
        left = t * (side - side // 4) // frames
        film[t, side // 3 : side // 3 + side // 4, left : left + side // 4] = 230
    return film
