"""Key frames of a video by optical flow, and the pairs of pictures between which something happens.

`flow_peak` is the rule of arXiv 2506.06006: the frames with most motion, some distance apart. A frame at a peak shows
an action half done; `settled` takes the quiet frames around each burst of motion instead.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import cv2
import numpy as np

from rl.errors import RewindError

FLOW_SIDE = 128
"""Pixels along the longer side at which flow is measured: motion of whole things needs no more."""
NOISE = 8.0
"""Change of a pixel's brightness (of 255, at a mean of 128) up to which it counts as noise."""
CUT_CHANGED, CUT_JUMP, CUT_NEAR = 0.4, 4.0, 4
"""What makes a cut, see `find_cuts`."""


@dataclass(frozen=True)
class Step:
    """What happened between two neighbouring frames.

    `motion` is the mean length of the optical flow in thousandths of the longer side of the picture; `jump` the mean
    change of brightness (0..255), `changed` the share of pixels (0..1) that change by more than `NOISE`.
    """

    motion: float
    jump: float
    changed: float


_Levelled = tuple[np.ndarray, np.ndarray]
"""A frame, small, grey and at a mean brightness of 128: uint8 and float32 [H, W]."""


class MotionMeter:
    """Measures the motion from each frame to the next, of which it keeps one, small.

    Every frame is brought to the same mean brightness first, so that a flickering light does not count as motion; and
    flow counts only where the picture changes by more than `NOISE`, since a sensor's noise on a bare wall flows too.
    """

    def __init__(self, flow: str = "farneback") -> None:
        self._before: _Levelled | None = None
        self._dis = None
        if flow == "dis":
            cv2.setNumThreads(1)  # its result depends on how the picture is shared out; and these are small
            self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def between(self, before: np.ndarray, after: np.ndarray) -> tuple[Step, np.ndarray]:
        """Of two pictures, uint8 RGB [H, W, 3]: what happened, and the flow [h, w, 2] as it is measured, small.

        Flow is in thousandths of the longer side, to the right and down, and 0 where nothing changes.
        """
        step, flow = self._between(_levelled(before), _levelled(after))
        return step, flow * (1000 / max(flow.shape[:2]))

    def step(self, frame: np.ndarray) -> Step | None:
        """From the frame before to this one, uint8 RGB [H, W, 3]; None for the first.

        Raises:
            RewindError: it has another size than the one before, or none of which flow can be measured.
        """
        try:
            return self._step(frame)
        except cv2.error as error:
            raise RewindError(f"no optical flow can be measured ({error})") from error

    def _step(self, frame: np.ndarray) -> Step | None:
        now = _levelled(frame)
        before, self._before = self._before, now
        return None if before is None else self._between(before, now)[0]

    def _between(self, before: _Levelled, after: _Levelled) -> tuple[Step, np.ndarray]:
        """What happened from one frame to the next, and the flow [H, W, 2] in pixels, 0 where nothing changes."""
        if before[0].shape != after[0].shape:
            raise RewindError("a video's frames must all have one size")
        change = np.abs(after[1] - before[1])
        moved = change > NOISE
        flow = self._flow(before[0], after[0])
        motion = 1000 * float((np.hypot(flow[..., 0], flow[..., 1]) * moved).mean()) / max(moved.shape)
        return Step(motion, float(change.mean()), float(moved.mean())), flow * moved[..., None]

    def _flow(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Optical flow [H, W, 2] in pixels between two grey pictures, uint8 [H, W]."""
        if self._dis is not None:
            return self._dis.calc(before, after, None)  # type: ignore[call-overload, no-any-return]
        return cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 11, 3, 5, 1.1, 0)  # type: ignore[call-overload, no-any-return]


def _levelled(frame: np.ndarray) -> _Levelled:
    height, width = frame.shape[:2]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
    grey = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    grey = np.clip(grey * (128.0 / max(1.0, float(grey.mean()))), 0, 255)
    return grey.astype(np.uint8), grey


def flow_magnitudes(frames: Iterable[np.ndarray], flow: str = "farneback") -> np.ndarray:
    """Motion between neighbouring frames: float32 [T - 1], `Step.motion` of each."""
    meter = MotionMeter(flow)
    steps = [step for frame in frames if (step := meter.step(frame)) is not None]
    return np.array([step.motion for step in steps], dtype=np.float32)


def find_cuts(steps: Sequence[Step]) -> list[int]:
    """Which of the steps between neighbouring frames are cuts from one shot to another, in order.

    At a cut most of the picture changes at once: at least `CUT_CHANGED` of the pixels, and on average `CUT_JUMP` times
    as much as at the median of the `CUT_NEAR` steps before and after. A moving camera changes as much at every step,
    and a thing that moves changes less of the picture. Fades are not recognised.
    """
    jumps = [step.jump for step in steps]
    found = []
    for t, step in enumerate(steps):
        if step.changed >= CUT_CHANGED:
            near = jumps[max(0, t - CUT_NEAR) : t] + jumps[t + 1 : t + 1 + CUT_NEAR]
            if not near or step.jump > CUT_JUMP * float(np.median(near)):
                found.append(t)
    return found


@dataclass(frozen=True)
class Mining:
    """How key frames are chosen.

    Args:
        rule: 'flow_peak' or 'settled'.
        num_frames: K_f, key frames a video at most.
        min_gap: I_f, frames between two key frames at least (`flow_peak`).
        quiet: share of the video's strongest motion under which a frame counts as still (`settled`).
        flow: how motion is measured: 'farneback', or 'dis' (dense inverse search, arXiv 1603.03590), which is faster.
    """

    rule: str = "flow_peak"
    num_frames: int = 6
    min_gap: int = 20
    quiet: float = 0.02
    flow: str = "farneback"

    def __post_init__(self) -> None:
        if self.rule not in ("flow_peak", "settled"):
            raise RewindError(f"key frames are chosen by 'flow_peak' or 'settled', not {self.rule!r}")
        if self.flow not in ("farneback", "dis"):
            raise RewindError(f"motion is measured by 'farneback' or 'dis', not {self.flow!r}")
        if self.num_frames < 2 or self.min_gap < 1 or not 0 < self.quiet < 1:
            raise RewindError("mining needs num_frames of at least 2, min_gap of at least 1 and quiet between 0 and 1")

    def pairs(self, motion: np.ndarray, cuts: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Frame numbers (before, after) from the motion of `flow_magnitudes`; no pair has a cut in it (`find_cuts`)."""
        if len(cuts):
            motion = motion.copy()
            motion[list(cuts)] = 0  # what seems to move at a cut does not
        pairs = self._settled(motion, set(cuts)) if self.rule == "settled" else self._flow_peak(motion)
        return [(a, b) for a, b in pairs if bisect_left(cuts, a) == bisect_left(cuts, b)]

    def still_possible(self, steps: Sequence[Step]) -> Set[int] | None:
        """Frames that may become key frames of `flow_peak`, whatever follows the steps so far; None: nobody can say.

        Of frames that lie min_gap apart from one another, the greedy choice takes at least every second, since a chosen
        one forbids no more than two. So a frame is out of the running once 2 num_frames such frames move more than it.
        No more than 2 num_frames min_gap frames stay, however long a video is.
        """
        if self.rule != "flow_peak":
            return None
        motion = np.array([step.motion for step in steps], dtype=np.float32)
        motion[find_cuts(steps)] = 0
        settled = max(0, len(motion) - CUT_NEAR)  # whether the later ones are cuts is open
        order = np.argsort(-motion[:settled], kind="stable") + 1

        def apart(count: int) -> int:
            """How many of the first frames of `order` can lie min_gap apart."""
            taken, last = 0, -self.min_gap
            for frame in np.sort(order[:count]):
                if frame - last >= self.min_gap:
                    taken, last = taken + 1, int(frame)
            return taken

        enough = bisect_left(range(len(order)), 2 * self.num_frames, key=lambda n: apart(n + 1)) + 1
        return {*order[:enough].tolist(), *range(settled + 1, len(motion) + 1)}

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

    def _settled(self, motion: np.ndarray, cuts: Set[int]) -> list[tuple[int, int]]:
        """The stillest frame of each quiet stretch; neighbouring stretches are a pair, with one burst between them."""
        if not len(motion) or motion.max() <= 0:
            return []
        still = np.concatenate([[True], motion < self.quiet * motion.max()])  # frame t came to rest
        stretches: list[list[int]] = []
        for frame in np.flatnonzero(still):
            if stretches and frame == stretches[-1][-1] + 1 and frame - 1 not in cuts:
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
