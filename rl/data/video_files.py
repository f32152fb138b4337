"""Writes frames to a video file without loss, so that what was rendered is what is read back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


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
