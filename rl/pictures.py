"""Pictures at the public door: uint8 RGB arrays or PIL images, brought to a model's size by one stated rule."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rl.errors import RewindError

Picture: TypeAlias = "np.ndarray | Image.Image"

SIZE_RULE = "the centre square is cut out and scaled"
_logger = logging.getLogger("rl")
_said: set[tuple[int, int, int]] = set()


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        RewindError: the file is missing or no readable image.
    """
    try:
        with Image.open(path) as image:
            # A camera's "this side up" is part of the picture.
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise RewindError(f"there is no image {path}: check the path") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise RewindError(f"{path} cannot be read as an image ({error}): replace or remove it") from error


def to_array(image: Picture, size: int) -> np.ndarray:
    """A picture as uint8 RGB [size, size, 3]; another size is changed by `SIZE_RULE`, which is said once a size.

    Raises:
        RewindError: not a picture, e.g. floats or four channels in an array.
    """
    if isinstance(image, Image.Image):
        array = np.asarray(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise RewindError(f"a picture is a uint8 array [H, W, 3] or a PIL image, not a {type(image).__name__}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise RewindError(f"a picture is uint8 RGB [H, W, 3] with values 0..255, not {array.dtype} {list(array.shape)}")
    height, width = array.shape[:2]
    if (height, width) == (size, size):
        return array
    if (height, width, size) not in _said:
        _said.add((height, width, size))
        _logger.warning("pictures of %dx%d: %s to %dx%d", width, height, SIZE_RULE, size, size)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(array[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
