"""Pictures as tokens: the codes of one, and the grid in which they lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Codes of a picture: `rows` x `columns`, row by row; of several views, one camera's after the other."""

    rows: int
    columns: int
    views: int = 1

    @property
    def codes(self) -> int:
        """How many codes there are (K)."""
        return self.rows * self.columns * self.views

    @property
    def one(self) -> Grid:
        """The grid of each view."""
        return Grid(self.rows, self.columns)

    @property
    def numbers(self) -> list[int]:
        """As JSON: what `Grid(*numbers)` reads."""
        return [self.rows, self.columns, self.views] if self.views > 1 else [self.rows, self.columns]


class Codes(list[int]):
    """Ids of one picture's codes, row by row, with the grid that they fill."""

    def __init__(self, ids: Iterable[int], grid: Grid) -> None:
        super().__init__(ids)
        self.grid = grid


def by_grid(pictures: Iterable[Codes]) -> dict[Grid, list[int]]:
    """The numbers of pictures by their grid: what is drawn, scored or decoded at once has one."""
    found: dict[Grid, list[int]] = {}
    for number, codes in enumerate(pictures):
        found.setdefault(codes.grid, []).append(number)
    return found
