"""What a decoded image becomes: 8-bit RGB, upright, on white (the rules stand in `rl.pictures`)."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Hashable
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rl.errors import RewindError

UNREADABLE = (  # what decoders raise at broken files
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
DEEP = ("F", "I", "I;16", "I;16L", "I;16B", "I;16N")
_logger = logging.getLogger("rl")
_said: set[Hashable] = set()


def rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, upright, by the rules of `rl.pictures`; the very same one if they change nothing."""
    with suppress(*UNREADABLE):  # a file that is decoded and closed tells its frames no more
        # MPO is what phones call a photograph with a small copy of it behind.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            _say_once("frames", "a picture has several frames or pages: only one is taken, in a file the first")
    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        image = eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def eight_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bit, scaled to 8; with an alpha channel if one of its values stands for transparent."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # so that NaN is refused, too
            raise RewindError(f"a picture of floats holds values 0..1, not {low:g}..{high:g}: scale it")
        grey = np.rint(values * 255)
    else:
        if low < 0 or high > 65535:
            raise RewindError(f"a picture of integers holds values 0..255 or 0..65535, not {low}..{high}: scale it")
        as_it_is = image.mode == "I" and high <= 255
        grey = values if as_it_is else (values.astype(np.int32) + 128) // 257
    found = Image.fromarray(grey.astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        found.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return found


def _say_once(key: Hashable, text: str) -> None:
    if key not in _said:
        _said.add(key)
        _logger.warning(text)
