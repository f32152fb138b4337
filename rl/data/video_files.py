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
PQ = 16
"""The transfer function of HDR10, as ITU-T H.273 numbers it."""


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 RGB [H, W, 3], one after the other, upright (turned as the file says).

    Raises:
        RewindError: no video, or one that breaks off (after the frames that could be read).
    """
    return (frame for _, frame in timed_frames(path))


def timed_frames(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of `frames_of` with the second at which each is shown, as the file times it (frames may last
    differently long); where it does not, by its rate.

    Raises:
        RewindError: as for `frames_of`.
    """
    try:
        with av.open(str(expanded(path))) as container:
            stream = _video_stream(container)
            if stream is None:
                raise RewindError(f"{path} has no video stream")
            rate = float(stream.average_rate or USUAL_RATE)
            for number, frame in enumerate(container.decode(stream)):
                image = _rgb(frame)
                if frame.rotation:  # degrees against the clock, of cameras held upright
                    image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                yield number / rate if frame.time is None else frame.time, image
    except (av.FFmpegError, ValueError) as error:
        raise RewindError(f"{path} breaks off ({error})") from error


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
