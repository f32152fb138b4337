"""Reads frames of any video, one at a time, and writes frames without loss, so that what was rendered is read back."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rl.errors import RewindError
from rl.paths import expanded


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 RGB [H, W, 3], one after the other.

    Raises:
        RewindError: no video, or one that breaks off (after the frames that could be read).
    """
    try:
        with av.open(str(expanded(path))) as container:
            if not container.streams.video:
                raise RewindError(f"{path} has no video stream")
            for frame in container.decode(container.streams.video[0]):
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, ValueError) as error:
        raise RewindError(f"{path} breaks off ({error})") from error


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


def frame_rate(path: Path, otherwise: float = 25.0) -> float:
    """Frames a second as the file says it, or `otherwise`."""
    try:
        with av.open(str(expanded(path))) as container:
            rate = container.streams.video[0].average_rate
    except (av.FFmpegError, ValueError, IndexError):
        return otherwise
    return float(rate or otherwise)
