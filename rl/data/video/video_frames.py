"""Pictures that are frames of videos, read when somebody looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rl.data.video.video_files import duration, frame_at
from rl.errors import RewindError
from rl.paths import is_file
from rl.picture_keys import key_of, stamp
from rl.stored import StoredPicture


@dataclass(frozen=True, slots=True)
class VideoFrame(StoredPicture):
    """The frame that a video shows at a second, None for its last one."""

    path: Path
    at: float | None

    @property
    def image(self) -> Image.Image:
        """The decoded frame, RGB."""
        if not is_file(self.path):
            raise RewindError(f"there is no video {self.path}: check the path")
        return Image.fromarray(frame_at(self.path, self.at))

    def check(self, decode: bool) -> None:
        """See that the frame is there: by decoding it, or by opening the video to see how long it is.

        Raises:
            RewindError: it is not.
        """
        if decode or not is_file(self.path):
            _ = self.image
        else:
            duration(self.path)

    @property
    def is_missing(self) -> bool:
        """Whether there is no such video."""
        return not is_file(self.path)


@stamp.register
def _(frame: VideoFrame) -> bytes | None:
    file = stamp(frame.path)
    return None if file is None else key_of(b"frame", file, repr(frame.at).encode())
