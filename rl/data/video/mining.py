"""Pairs of a video, found while it is decoded once, in memory that does not grow with its length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl.data.video.keyframes import Mining, MotionMeter, Step, find_cuts
from rl.data.video.video_files import frames_of, timed_frames
from rl.errors import RewindError
from rl.pictures import to_array

KEPT_BYTES = 256 * 2**20
"""Of pictures that may still become key frames."""

AHEAD = 4
"""Frames that are decoded before they are needed."""


@dataclass(frozen=True)
class MinedPair:
    """Two frames of a video between which something happens: pictures uint8 RGB, frame numbers, motion between them."""

    before: np.ndarray
    after: np.ndarray
    start: int
    end: int
    motion: float


_Found = list[tuple[int, int, float]]
"""Frame numbers in the video, and the motion between them."""


def mine(path: Path, mining: Mining, size: int, per_seconds: float | None = None) -> list[MinedPair]:
    """All pairs of `mined`."""
    return list(mined(path, mining, size, per_seconds))


def mined(
    path: Path, mining: Mining, size: int, per_seconds: float | None = None, kept_bytes: int = KEPT_BYTES
) -> Iterator[MinedPair]:
    """Pairs of one video file in the order of time, pictures [size, size, 3], while it is read.

    Args:
        path: the video.
        mining: the rule.
        size: of the pictures.
        per_seconds: apply the rule to each window of so many seconds by itself; None: to the whole video.
        kept_bytes: pictures that may still become key frames are kept up to here. Beyond that (`settled` over a long
            whole video) they are let go, and the video is decoded a second time for those that did.

    Raises:
        RewindError: the file is no video or breaks off, after the pairs of what could be read.
    """
    if per_seconds is not None and per_seconds <= 0:
        raise RewindError(f"windows of mining must be longer than 0 seconds, not {per_seconds:g}")
    meter, window, number, start = MotionMeter(mining.flow), _Window(0, mining, size, kept_bytes), 0, 0.0
    index, fault, later = 0, None, _Found()
    frames = _ahead(timed_frames(path))
    while True:
        step: Step | None = None
        try:
            seconds, frame = next(frames)
            step = meter.step(frame)
        except StopIteration:
            break
        except RewindError as error:
            fault = error if str(path) in str(error) else RewindError(f"{path}, frame {number}: {error}")
            break
        start = seconds if number == 0 else start
        at = int((seconds - start) // per_seconds) if per_seconds is not None else 0
        if at > index:
            yield from window.pairs(later)
            index, window, step = at, _Window(number, mining, size, 0 if later else kept_bytes), None
        window.add(frame, step)
        number += 1
    yield from window.pairs(later)
    if later:
        yield from _again(path, later, size)
    if fault is not None:
        raise fault


def _ahead(frames: Iterator[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray]]:
    """The same frames, decoded by a thread while flow is measured: neither holds Python's lock."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, frames, None) for _ in range(AHEAD))
        while (one := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, frames, None))
            yield one


class _Window:
    """The frames that the rule is applied to: what happened between them, and pictures that may become key frames."""

    def __init__(self, first: int, mining: Mining, size: int, kept_bytes: int) -> None:
        self._first, self._mining, self._size, self._room = first, mining, size, kept_bytes
        self._steps: list[Step] = []
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._complete = True

    def add(self, frame: np.ndarray, step: Step | None) -> None:
        """The next frame, and what happened since the one before; None for the first."""
        if step is not None:
            self._steps.append(step)
        if not self._complete:
            return
        # A frame that is little larger stays as it is: few become key frames, and scaling takes longer than decoding.
        picture = frame if frame.nbytes <= 2 * 3 * self._size**2 else to_array(frame, self._size)
        self._kept[len(self._steps)] = picture
        self._bytes += picture.nbytes
        if self._bytes > self._room:
            self._let_go()

    def pairs(self, later: _Found) -> Iterator[MinedPair]:
        """The pairs of the window; if its pictures were let go, or those of one before, they are added to `later`."""
        motion = np.array([step.motion for step in self._steps], dtype=np.float32)
        found = self._mining.pairs(motion, find_cuts(self._steps))
        if not self._complete or later:
            later += [(self._first + a, self._first + b, float(motion[a:b].sum())) for a, b in found]
            return
        small = {t: to_array(self._kept[t], self._size) for pair in found for t in pair}
        for a, b in found:
            yield MinedPair(small[a], small[b], self._first + a, self._first + b, float(motion[a:b].sum()))

    def _let_go(self) -> None:
        """Of pictures that can no longer become key frames; of all if that is not enough."""
        kept = self._mining.still_possible(self._steps)
        self._kept = {t: picture for t, picture in self._kept.items() if kept is not None and t in kept}
        self._bytes = sum(picture.nbytes for picture in self._kept.values())
        if kept is None or 2 * self._bytes > self._room:
            self._kept, self._complete = {}, False


def _again(path: Path, found: Sequence[tuple[int, int, float]], size: int) -> Iterator[MinedPair]:
    """The pairs of frame numbers in the order of time, decoded anew; at most neighbours share a frame."""
    kept: dict[int, np.ndarray] = {}
    waiting = iter(found)
    pair = next(waiting, None)
    frames = enumerate(frames_of(path))
    while pair is not None:
        a, b, motion = pair
        while b not in kept:
            t, frame = next(frames)
            if t in (a, b):
                kept[t] = to_array(frame, size)
        yield MinedPair(kept[a], kept[b], a, b, motion)
        kept, pair = {b: kept[b]}, next(waiting, None)
