"""Key frames of a video by optical flow, and the pairs of pictures between which something happens.

`flow_peak` is the rule of arXiv 2506.06006: the frames with most motion, some distance apart. A frame at a peak shows
an action half done; `settled` takes the quiet frames around each burst of motion instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rl.data.video_files import frames_of
from rl.errors import RewindError
from rl.pictures import to_array

FLOW_SIDE = 128
"""Pixels along the longer side at which flow is measured: motion of whole things needs no more."""
NOISE = 8.0
"""Change of a pixel's brightness (of 255, at a mean of 128) up to which it counts as noise."""


def flow_magnitudes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Motion between neighbouring frames: float32 [T - 1], mean length of the optical flow (Farneback) in thousandths
    of the longer side of the picture.

    Every frame is brought to the same mean brightness first, so that a flickering light does not count as motion; and
    flow counts only where the picture changes by more than `NOISE`, since a sensor's noise on a bare wall flows too.
    """
    found, before, before_grey = [], None, None
    for frame in frames:
        height, width = frame.shape[:2]
        scale = min(1.0, FLOW_SIDE / max(height, width))
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
        grey = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
        grey = np.clip(grey * (128.0 / max(1.0, float(grey.mean()))), 0, 255)
        level = grey.astype(np.uint8)
        if before is not None and before.shape != level.shape:
            raise RewindError("a video's frames must all have one size")
        if before is not None and before_grey is not None:
            flow = cv2.calcOpticalFlowFarneback(before, level, None, 0.5, 3, 11, 3, 5, 1.1, 0)  # type: ignore[call-overload]
            moved = np.abs(grey - before_grey) > NOISE
            found.append(1000 * float((np.hypot(flow[..., 0], flow[..., 1]) * moved).mean()) / max(level.shape))
        before, before_grey = level, grey
    return np.array(found, dtype=np.float32)


@dataclass(frozen=True)
class Mining:
    """How key frames are chosen.

    Args:
        rule: 'flow_peak' or 'settled'.
        num_frames: K_f, key frames a video at most.
        min_gap: I_f, frames between two key frames at least (`flow_peak`).
        quiet: share of the video's strongest motion under which a frame counts as still (`settled`).
    """

    rule: str = "flow_peak"
    num_frames: int = 6
    min_gap: int = 20
    quiet: float = 0.02

    def __post_init__(self) -> None:
        if self.rule not in ("flow_peak", "settled"):
            raise RewindError(f"key frames are chosen by 'flow_peak' or 'settled', not {self.rule!r}")
        if self.num_frames < 2 or self.min_gap < 1 or not 0 < self.quiet < 1:
            raise RewindError("mining needs num_frames of at least 2, min_gap of at least 1 and quiet between 0 and 1")

    def pairs(self, motion: np.ndarray) -> list[tuple[int, int]]:
        """Frame numbers (before, after) from the motion of `flow_magnitudes`."""
        return self._settled(motion) if self.rule == "settled" else self._flow_peak(motion)

    def _flow_peak(self, motion: np.ndarray) -> list[tuple[int, int]]:
        """The num_frames frames with most motion that are min_gap apart; neighbours in time are pairs."""
        chosen: list[int] = []
        for frame in np.argsort(-motion, kind="stable") + 1:  # motion[t] is what happened up to frame t + 1
            if motion[frame - 1] <= 0:  # nothing moves in the frames that are left
                break
            if all(abs(int(frame) - other) >= self.min_gap for other in chosen):
                chosen.append(int(frame))
            if len(chosen) == self.num_frames:
                break
        chosen.sort()
        return list(itertools.pairwise(chosen))

    def _settled(self, motion: np.ndarray) -> list[tuple[int, int]]:
        """The stillest frame of each quiet stretch; neighbouring stretches are a pair, with one burst between them."""
        if not len(motion) or motion.max() <= 0:
            return []
        still = np.concatenate([[True], motion < self.quiet * motion.max()])  # frame t came to rest
        stretches: list[list[int]] = []
        for frame in np.flatnonzero(still):
            if stretches and frame == stretches[-1][-1] + 1:
                stretches[-1].append(int(frame))
            else:
                stretches.append([int(frame)])
        around = np.concatenate([[0.0], motion]) + np.concatenate([motion, [0.0]])
        keys = [min(stretch, key=lambda t: float(around[t])) for stretch in stretches]
        pairs = list(itertools.pairwise(keys))
        # The bursts with most motion, if there are more than were asked for.
        strength = [float(motion[a:b].sum()) for a, b in pairs]
        best = sorted(np.argsort(strength)[::-1][: self.num_frames - 1])
        return [pairs[int(i)] for i in best]


@dataclass(frozen=True)
class MinedPair:
    """Two frames of a video between which something happens: pictures uint8 RGB, frame numbers, motion between them."""

    before: np.ndarray
    after: np.ndarray
    start: int
    end: int
    motion: float


def mine(path: Path, mining: Mining, size: int) -> list[MinedPair]:
    """Pairs of one video file, pictures [size, size, 3]; two passes, so that a long film needs no more memory than its
    key frames.

    Raises:
        RewindError: the file is no video or breaks off.
    """
    try:
        motion = flow_magnitudes(frames_of(path))
    except cv2.error as error:
        raise RewindError(f"{path}: no optical flow can be measured ({error})") from error
    pairs = mining.pairs(motion)
    wanted = {frame for pair in pairs for frame in pair}
    kept = {t: to_array(frame, size) for t, frame in enumerate(frames_of(path)) if t in wanted} if wanted else {}
    return [MinedPair(kept[a], kept[b], a, b, float(motion[a:b].sum())) for a, b in pairs]
