"""The sizes of pictures that a base reads and draws: one for all, or each picture's own shape at one area."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from rl.errors import RewindError

SizeLike: TypeAlias = "int | str | tuple[int, int] | PictureSize"
MOST_RATIO = 4
"""Sides of a picture of its own shape differ at most by this factor, as in Lumina-mGPT's training."""


@dataclass(frozen=True)
class PictureSize:
    """Height and width in pixels; with `own`, every picture keeps its shape at no more than that area."""

    height: int
    width: int
    own: bool = False

    @classmethod
    def of(cls, given: SizeLike) -> PictureSize:
        """512 or '512' (square), '384x672' or (384, 672) (height x width), 'own:512' (own shape, area of 512 x 512).

        Raises:
            RewindError: something else.
        """
        if isinstance(given, PictureSize):
            return given
        if isinstance(given, tuple | list) and len(given) == 2:
            given = f"{given[0]}x{given[1]}"
        found = re.fullmatch(r"(own:)?([1-9]\d*)|([1-9]\d*)x([1-9]\d*)", str(given))
        if found is None or isinstance(given, bool):
            raise RewindError(
                "image_size is 512 (square), 384x672 (height x width) or own:512 (each picture keeps its shape, at "
                f"the area of 512 x 512), not '{given}'"
            )
        own, side, height, width = found.groups()
        return cls(int(side or height), int(side or width), bool(own))

    @property
    def written(self) -> int | str:
        """As a setting or in `rewind.json`: what `of` reads."""
        if self.own:
            return f"own:{self.height}"
        return self.height if self.height == self.width else f"{self.height}x{self.width}"

    @property
    def longest(self) -> int:
        """The longest side that a picture can have, in pixels."""
        return round(self.height * MOST_RATIO**0.5) if self.own else max(self.height, self.width)

    def check(self, name: str, unit: int, most: int) -> None:
        """Raise a `RewindError` unless sides are multiples of `unit` pixels and the area is at most `most` squared."""
        ratio = max(self.height, self.width) / min(self.height, self.width)
        if self.height % unit or self.width % unit or self.height * self.width > most**2 or ratio > MOST_RATIO:
            raise RewindError(
                f"{name} takes pictures whose sides are multiples of {unit} pixels, differ at most by a factor of "
                f"{MOST_RATIO}, and have no more than the area of {most} x {most}: not {self.written}"
            )

    def shape(self, height: int, width: int, unit: int) -> tuple[int, int]:
        """Height and width that a picture of some size gets."""
        if not self.own:
            return self.height, self.width
        rows, columns = best_shape(height, width, (self.height // unit) * (self.width // unit))
        return rows * unit, columns * unit


@lru_cache(maxsize=1024)
def best_shape(height: int, width: int, cells: int) -> tuple[int, int]:
    """Rows and columns, at most `cells` in all, of which a picture of this size loses the least when it is cut to it.

    The rule of Lumina-mGPT's preprocessing: the share of the picture that is left; of equal ones the larger.
    """
    columns = range(1, cells + 1)
    shapes = {(cells // n, n) for n in columns} | {(n, cells // n) for n in columns}
    allowed = [(r, c) for r, c in shapes if max(r, c) <= MOST_RATIO * min(r, c)]

    def left(shape: tuple[int, int]) -> tuple[float, int, int]:
        vertical, horizontal = shape[0] / height, shape[1] / width
        return min(vertical, horizontal) / max(vertical, horizontal), shape[0] * shape[1], shape[1]

    return max(allowed, key=left)
