"""Pictures that stay where they are stored: decoded each time somebody looks, and never kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


class StoredPicture:
    """A picture that is not decoded before somebody looks at it; `rl.pictures.PictureFile` is one in a file.

    It goes wherever a picture does. `np.asarray` of it is uint8 RGB [H, W, 3]; `size` is (width, height), upright; what
    else PIL's images can do, it does on a decoded copy. Looking raises a `RewindError` if it has gone bad since.
    """

    __slots__ = ()

    @property
    def image(self) -> Image.Image:
        """The decoded picture, RGB."""
        raise NotImplementedError

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        return self.image.size

    def check(self, decode: bool) -> None:
        """See that the picture is there and whole; with `decode` by reading all of it, else by what is cheap to see.

        Raises:
            RewindError: it is not.
        """
        _ = self.image

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing where the picture should be."""
        return False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.image, dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.image, name)
