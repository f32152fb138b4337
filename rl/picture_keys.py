"""What a picture is known by, so that what was computed of it is found again: its content, and a stamp for that.

A content key is a hash of the picture's bytes as they lie in its file or in a cell of a table (of several views: of all
in order; of a video's frame: of its pixels), 16 bytes. A stamp says without reading them that they are what they were:
path, size and time of the last change. Another class of pictures registers both functions for itself
(`functools.singledispatch`).
"""

from __future__ import annotations

import os
from functools import singledispatch
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.pictures import EncodedPicture, PictureFile, Views, pixels

KEY_BYTES = 16
_AT_ONCE = 1 << 20


def key_of(*parts: bytes) -> bytes:
    """One key of several parts, 16 bytes."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


@singledispatch
def stamp(_: Any) -> bytes | None:
    """What stands for a picture's content while nobody changes it, 16 bytes; None where only its pixels can tell."""
    return None


@singledispatch
def content_key(picture: Any) -> bytes:
    """A hash of a picture's content, 16 bytes: of its file's bytes where it lies in one, else of its pixels.

    Raises:
        RewindError: the file cannot be read, or it is no picture.
    """
    found = pixels(picture)
    return key_of(b"pixels", repr(found.shape).encode(), found.tobytes())


@stamp.register
def _(picture: PictureFile) -> bytes | None:
    return _stamp_of(picture.path)


@stamp.register(str)
@stamp.register(Path)
def _stamp_of(path: str | Path) -> bytes | None:
    file = Path(path)
    try:
        found = file.stat()
    except OSError:
        return None  # whoever reads it says what is wrong
    return key_of(os.fsencode(file.absolute()), repr((found.st_size, found.st_mtime_ns)).encode())


@stamp.register
def _(picture: EncodedPicture) -> bytes | None:
    return content_of(picture.content)


@stamp.register
def _(picture: Views) -> bytes | None:
    each = [stamp(one) for one in picture.pictures]
    known = [one for one in each if one is not None]
    return key_of(b"views", *known) if len(known) == len(each) else None


@content_key.register
def _(picture: PictureFile) -> bytes:
    return _content_of(picture.path)


@content_key.register(str)
@content_key.register(Path)
def _content_of(path: str | Path) -> bytes:
    digest = blake2b(b"file", digest_size=KEY_BYTES)
    try:
        with Path(path).open("rb") as file:
            while part := file.read(_AT_ONCE):
                digest.update(part)
    except OSError as error:
        raise RewindError(f"{path} cannot be read ({error.strerror}): replace or remove it") from error
    return digest.digest()


@content_key.register
def _(picture: EncodedPicture) -> bytes:
    return content_of(picture.content)


def content_of(content: Any) -> bytes:
    """The content key of a picture whose file's bytes are at hand (any buffer), the same as in a file."""
    digest = blake2b(b"file", digest_size=KEY_BYTES)
    digest.update(content)
    return digest.digest()


@content_key.register
def _(picture: Views) -> bytes:
    return key_of(b"views", *(content_key(one) for one in picture.pictures))
