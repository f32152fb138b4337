"""Whether an image file is whole, by its two ends: what breaks off or was never filled in shows there, undecoded."""

from __future__ import annotations

import os
from pathlib import Path

LARGEST = 178_956_970
"""Pixels above which PIL refuses a picture as a decompression bomb (twice its `MAX_IMAGE_PIXELS`)."""
HEAD, TAIL = 32, 12
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB\x60\x82"


def ends_of(path: Path) -> tuple[bytes, bytes, int]:
    """The first and the last bytes of a file, and its size; of one that cannot be read nothing."""
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL, 0))
            return head, file.read(TAIL), size
    except OSError:
        return b"", b"", 0


def ends_are_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a JPEG, PNG or WebP file begins and ends as a whole one does; False for all that this cannot tell.

    Damage in the middle of a file is not seen.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(_PNG):
        width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
        return tail == _PNG_END and 0 < width * height <= LARGEST
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 == size
    return False
