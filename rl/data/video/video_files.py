"""Reads frames of any video, one at a time, and writes frames without loss, so that what was rendered is read back."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from rl.errors import RewindError
from rl.paths import expanded

USUAL_RATE = 25.0
"""Frames a second where a file does not say."""
BEYOND = 1.0
"""Seconds that a time may lie behind the last frame and still mean that one; tables round, and streams end early."""
PQ = 16
"""The transfer function of HDR10, as ITU-T H.273 numbers it."""


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 RGB [H, W, 3], one after the other, upright (turned as the file says).

    Raises:
        RewindError: no video, or one that breaks off (after the frames that could be read).
    """
    return (frame for _, frame in timed_frames(path))


def timed_frames(path: Path, near: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of `frames_of` with the second at which each is shown, as the file times it (frames may last
    differently long); where it does not, by its rate. With `near`, from the last frame before that second on at which
    the file can be entered.

    Raises:
        RewindError: as for `frames_of`.
    """
    try:
        with av.open(str(expanded(path))) as container:
            stream = _video_stream(container)
            if stream is None:
                raise RewindError(f"{path} has no video stream")
            rate = float(stream.average_rate or USUAL_RATE)
            if near is not None and stream.time_base:
                container.seek((stream.start_time or 0) + int(near / stream.time_base), stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                image = _rgb(frame)
                if frame.rotation:  # degrees against the clock, of cameras held upright
                    image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                yield number / rate if frame.time is None else frame.time, image
    except (av.FFmpegError, ValueError) as error:
        raise RewindError(f"{path} breaks off ({error})") from error


def frame_at(path: Path, at: float | None) -> np.ndarray:
    """The frame that is shown at a second of a video, uint8 RGB [H, W, 3] and upright; None is the last one.

    Raises:
        RewindError: as for `frames_of` on the way to it, or a video that ends more than `BEYOND` seconds before.
    """
    second = at if at is not None else (duration(path) or 0.0)
    # Where a file cannot be entered close before the frame, or no frame comes after that, it is read from the start.
    found = _shown_at(path, at, max(second - BEYOND, 0.0)) if second > BEYOND else None
    found = found or _shown_at(path, at, None)
    if found is None:
        raise RewindError(f"{path} has no frame")
    time, image = found
    if at is not None and at > time + BEYOND:
        raise RewindError(f"{path} has no frame at {at:g} s: its last is shown at {time:g} s")
    return image


def _shown_at(path: Path, at: float | None, near: float | None) -> tuple[float, np.ndarray] | None:
    """The last frame that is shown at `at` or before, None if the first to be read comes later."""
    found = None
    try:
        for time, image in timed_frames(path, near):
            if at is not None and time > at + 1e-6:
                return found or ((time, image) if near is None else None)
            found = time, image
    except RewindError:
        if near is None:
            raise
        return None
    return found


def duration(path: Path) -> float | None:
    """Seconds that a video lasts, as the file says it; None where it does not.

    Raises:
        RewindError: it cannot be opened, or shows nothing.
    """
    try:
        with av.open(str(expanded(path))) as container:
            if _video_stream(container) is None:
                raise RewindError(f"{path} has no video stream")
            return None if container.duration is None else container.duration / av.time_base
    except (av.FFmpegError, ValueError) as error:
        raise RewindError(f"{path} cannot be read as a video ({error}): replace or remove it") from error


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """A frame as uint8 RGB [H, W, 3]; of HDR10 (PQ), which would be grey and dim, up to an ordinary white.

    HLG is made to be looked at as it is.
    """
    if frame.color_trc == PQ:
        return _from_pq()[frame.to_ndarray(format="rgb48le")]
    return frame.to_ndarray(format="rgb24")


@cache
def _from_pq() -> np.ndarray:
    """Uint8 [65536]: the 8-bit value (gamma 2.2) of each 16-bit PQ code (SMPTE ST 2084); 203 candela a square metre are
    white (ITU-R BT.2408), and so is what is brighter.
    """
    code = np.linspace(0, 1, 65536) ** (32 / 2523)
    light = 10000 * (np.maximum(code - 0.8359375, 0) / (18.8515625 - 18.6875 * code)) ** (8192 / 1305)
    return np.rint(255 * np.minimum(light / 203, 1) ** (1 / 2.2)).astype(np.uint8)


def _video_stream(container: InputContainer) -> VideoStream | None:
    """The first stream that moves: a cover picture is a video stream of one frame to a container."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return next((stream for stream in container.streams.video if not stream.disposition & pictures), None)


def write_video(frames_THWC: np.ndarray, path: Path, frames_per_second: int = 8) -> None:
    """Write uint8 RGB frames [T, H, W, 3] as FFV1 (lossless) in a Matroska file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=frames_per_second)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.time_base = Fraction(1, frames_per_second)
        for image in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def frame_rate(path: Path, otherwise: float = USUAL_RATE) -> float:
    """Frames a second as the file says it, or `otherwise`."""
    try:
        with av.open(str(expanded(path))) as container:
            stream = _video_stream(container)
            rate = stream.average_rate if stream is not None else None
    except (av.FFmpegError, ValueError):
        return otherwise
    return float(rate or otherwise)
