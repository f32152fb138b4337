"""Pictures at the public door, brought to 8-bit RGB and to a model's size by one stated rule.

A picture is a uint8 RGB array [H, W, 3], a PIL image of any mode, or a file. Whatever door it comes by:

- It is turned as its EXIF orientation says, and the result says so no more: nothing is turned twice.
- Grey of 16 bit (modes I;16...) becomes round(v / 257); integers of 32 bit (mode I) do so if any is above 255, and are
  taken as they are if none is; floats (mode F) are 0..1 and become round(255 v). Other values are refused.
- What is transparent shows white.
- Of several frames or pages, the one that the image stands at is taken, in a file the first.
- Everything else (palettes, CMYK, 1 bit, 8-bit grey, ...) is converted by PIL; 8-bit RGB stays as it is.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rl.errors import RewindError
from rl.paths import as_written, expanded, is_file
from rl.stored import StoredPicture
from rl.wholeness import ends_are_whole, ends_of

SIZE_RULE = "the centre square is cut out and scaled"
SHAPE_RULE = "the centre of that shape is cut out and scaled"
_UNREADABLE = (  # what decoders raise at broken files
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_DEEP = ("F", "I", "I;16", "I;16L", "I;16B", "I;16N")
_logger = logging.getLogger("rl")
_said: set[Hashable] = set()
_said_sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}


@dataclass(frozen=True, slots=True)
class PictureFile(StoredPicture):
    """A picture that stays in its file. Its size, unless it is known already, is read from the file's header."""

    path: Path
    known_size: tuple[int, int] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, path: str | Path) -> PictureFile:
        """Look once whether a file is a whole picture, a JPEG at an eighth of its size; no pixels are kept.

        Raises:
            RewindError: as for `load_image`.
        """
        file = as_written(path)
        return cls(file, _measured(file, decode=True))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        if self.known_size is None:
            object.__setattr__(self, "known_size", _measured(self.path, decode=False))
        assert self.known_size is not None
        return self.known_size

    @property
    def image(self) -> Image.Image:
        """The decoded picture, RGB."""
        return load_image(self.path)

    def check(self, decode: bool) -> None:
        """See that the file is whole: by decoding it, or by its two ends where these tell (`rl.wholeness`).

        Raises:
            RewindError: as for `load_image`.
        """
        if decode or not ends_are_whole(*ends_of(self.path)):
            _measured(self.path, decode=True)

    @property
    def is_missing(self) -> bool:
        """Whether there is no such file."""
        return not is_file(self.path)


@dataclass(frozen=True, slots=True)
class EncodedPicture(StoredPicture):
    """A picture as the bytes of an image file; `name` is for sentences about it."""

    content: bytes = field(repr=False)
    name: str = "a picture"

    @property
    def image(self) -> Image.Image:
        """The decoded picture, RGB."""
        with _opened(self.name, io.BytesIO(self.content)) as image:
            found = _rgb(image)
            return found.copy() if found is image else found


@dataclass(frozen=True)
class Views:
    """One scene through several cameras: a picture that is made of pictures, for models that read them so.

    `np.asarray` of it is uint8 RGB [views x H, W, 3], one below the other, all of the first one's size.

    Raises:
        RewindError: fewer than two pictures, or views among them.
    """

    pictures: tuple[Picture, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(from_path(one) for one in self.pictures))
        if len(self.pictures) < 2:
            raise RewindError(f"views are at least two pictures, not {len(self.pictures)}")
        if any(isinstance(one, Views) for one in self.pictures):
            raise RewindError("views are pictures of one camera each: give all of them side by side")

    @classmethod
    def of_stack(cls, stack_HWC: np.ndarray, views: int) -> Views:
        """The views of what `np.asarray` has put together."""
        return cls(tuple(np.split(stack_HWC, views)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        size = size_of(self.pictures[0])
        return np.array(np.concatenate([to_array(one, size) for one in self.pictures]), dtype=dtype)


Picture: TypeAlias = "np.ndarray | Image.Image | StoredPicture | Views"
PictureLike: TypeAlias = "Picture | str | Path"
"""What public doors take for a picture: the path of a file, too."""


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, by the rules of this module.

    Raises:
        RewindError: the file is missing, no readable image, not whole, far too large (a decompression bomb), or holds
            values that are no shades of 8 or 16 bit.
    """
    with _opened(expanded(path)) as image:
        found = _rgb(image)
        return found.copy() if found is image else found


def to_image(picture: PictureLike) -> Image.Image:
    """A picture of any kind as an 8-bit RGB image of its own size, by the rules of this module.

    Raises:
        RewindError: not a picture, e.g. floats or four channels in an array, or an image that cannot be decoded.
    """
    if isinstance(picture, np.ndarray):
        return Image.fromarray(pixels(picture))
    if isinstance(picture, StoredPicture):
        return picture.image
    if isinstance(picture, Views):
        return Image.fromarray(np.asarray(picture))
    if isinstance(picture, str | Path):
        return load_image(picture)
    if not isinstance(picture, Image.Image):
        kinds = "a uint8 array [H, W, 3], a PIL image or the path of a file"
        raise RewindError(f"a picture is {kinds}, not a {type(picture).__name__}")
    try:
        return _rgb(picture)
    except _UNREADABLE as error:
        raise RewindError(f"the picture cannot be decoded ({error}): replace it") from error


def pixels(picture: PictureLike) -> np.ndarray:
    """A picture of any kind as uint8 RGB [H, W, 3] of its own size; an array is given back as it is.

    Raises:
        RewindError: as for `to_image`.
    """
    array = picture if isinstance(picture, np.ndarray) else np.asarray(to_image(picture))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise RewindError(f"a picture is uint8 RGB [H, W, 3] with values 0..255, not {array.dtype} {list(array.shape)}")
    return array


def to_array(image: PictureLike, size: int | tuple[int, int]) -> np.ndarray:
    """A picture of any kind as uint8 RGB [size, size, 3], or [H, W, 3] for a size (H, W).

    Another shape is changed by `SIZE_RULE` or `SHAPE_RULE`. That is said for the first size that occurs, and once for
    all others. Of several views, one below the other, each gets its share of the rows.

    Raises:
        RewindError: as for `to_image`.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if isinstance(image, Views):
        views = image.pictures
        return np.concatenate([to_array(one, (rows // len(views), columns)) for one in views])
    array = pixels(image)
    height, width = array.shape[:2]
    if (height, width) == (rows, columns):
        return array
    _say_size(width, height, rows, columns)
    high, wide = min(height, round(width * rows / columns)), min(width, round(height * columns / rows))
    top, left = (height - high) // 2, (width - wide) // 2
    part = Image.fromarray(array[top : top + max(high, 1), left : left + max(wide, 1)])
    return np.asarray(part.resize((columns, rows), Image.Resampling.LANCZOS))


def size_of(picture: PictureLike) -> tuple[int, int]:
    """Height and width of a picture in pixels, upright; a file is not decoded for it."""
    if isinstance(picture, StoredPicture):
        return picture.size[1], picture.size[0]
    height, width = pixels(picture).shape[:2]
    return height, width


def views_of(picture: PictureLike) -> int:
    """How many pictures a picture is made of."""
    return len(picture.pictures) if isinstance(picture, Views) else 1


def from_path(given: Any) -> Any:
    """The picture in a file for its path, the views in several for a list of paths; anything else as it is.

    Raises:
        RewindError: the path is that of no whole picture.
    """
    if isinstance(given, list | tuple) and given and all(isinstance(one, str | Path) for one in given):
        return Views(tuple(given))
    return PictureFile.of(given) if isinstance(given, str | Path) else given


@contextmanager
def _opened(path: Path | str, content: io.BytesIO | None = None) -> Iterator[Image.Image]:
    """An image file, or the content of one, whose faults become a sentence with its name."""
    try:
        with Image.open(path if content is None else content) as image:
            yield image
    except FileNotFoundError as error:
        raise RewindError(f"there is no image {path}: check the path") from error
    except RewindError as error:
        raise RewindError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        buffer = content is not None and isinstance(error, UnidentifiedImageError)  # it would tell an address in memory
        told = "it is no image file" if buffer else str(error)
        raise RewindError(f"{path} cannot be read as an image ({told}): replace or remove it") from error


def _measured(file: Path, decode: bool) -> tuple[int, int]:
    """Width and height of a picture in a file, upright; with `decode` only if all of it can be read."""
    with _opened(file) as image:
        width, height = image.size
        if decode:
            image.draft("L", (1, 1))
            image.load()
            if image.mode in _DEEP:
                _eight_bit(image)
        # PIL's TIFF reader turns pictures itself, and tells the turned size from the start.
        return (height, width) if image.format != "TIFF" and _orientation(image) >= 5 else (width, height)


def _rgb(image: Image.Image) -> Image.Image:
    """An image by the rules of this module; the very same one if they change nothing."""
    with suppress(*_UNREADABLE):  # a file that is decoded and closed tells its frames no more
        # MPO is what phones call a photograph with a small copy of it behind.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            _say_once("frames", "a picture has several frames or pages: only one is taken, in a file the first")
    image.load()
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def _eight_bit(image: Image.Image) -> Image.Image:
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


def _say_size(width: int, height: int, rows: int, columns: int) -> None:
    said = _said_sizes.setdefault((rows, columns), [])  # the first size, and one of all others
    if len(said) < 2 and (width, height) not in said:
        said.append((width, height))
        which = "pictures of other sizes" if len(said) == 2 else f"pictures of {width}x{height}"
        rule = SIZE_RULE if rows == columns else SHAPE_RULE
        _logger.warning("%s: %s to %dx%d", which, rule, columns, rows)
