"""Codes and distances of triplets in a token cache, by the triplet's number: what is read is read there, each time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from rl.codes import Codes, Grid
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import BLOCK, pairs_of
from rl.errors import RewindError
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet

_GRID = "_grid"


@dataclass(frozen=True)
class CachedCodes:
    """Pictures by number: vocabulary ids [K] and their grid."""

    cache: TokenCache
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[np.ndarray, Grid]:
        return self.cache.picture(int(self.places[number]))

    def grids(self) -> set[Grid]:
        """The grids that occur."""
        return self.cache.grids(self.places)


@dataclass(frozen=True)
class CodesInMemory:
    """The same of pictures whose codes are at hand."""

    pictures: Sequence[tuple[np.ndarray, Grid]]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[np.ndarray, Grid]:
        return self.pictures[number]

    def grids(self) -> set[Grid]:
        """The grids that occur."""
        return {grid for _, grid in self.pictures}


@dataclass(frozen=True)
class CodesOnDisk:
    """The same of pictures in two columns of rows in a file (`fields_of`)."""

    rows: Dataset
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[np.ndarray, Grid]:
        ids, grid = (self.rows.data.column(field)[number] for field in (self.name, self.name + _GRID))
        return ids.values.to_numpy().astype(np.int64), _grid(grid.as_py())

    def grids(self) -> set[Grid]:
        """The grids that occur."""
        return {_grid(text) for text in self.rows.data.column(self.name + _GRID).unique().to_pylist()}


def fields_of(vlm: UnifiedVLM, *names: str) -> list[pa.Field]:
    """The columns of pictures in a file: vocabulary ids, in as few bytes as they need, and the grid as JSON."""
    ids = pa.list_(pa.from_numpy_dtype(np.min_scalar_type(int(vlm.layout.image_ids_V.max()))))
    return [field for name in names for field in (pa.field(name, ids), pa.field(name + _GRID, pa.string()))]


def as_columns(name: str, pictures: Sequence[Codes]) -> dict[str, Any]:
    """Pictures as `fields_of` has them."""
    return {name: pictures, name + _GRID: [json.dumps(codes.grid.numbers) for codes in pictures]}


def _grid(text: str) -> Grid:
    return Grid(*json.loads(text))


@dataclass(frozen=True)
class CachedDistances(Sequence[Tensor]):
    """Squared feature distances of pairs by number, float32 [K]."""

    cache: TokenCache
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]  # int alone
        if number >= len(self.places):
            raise IndexError(number)
        return torch.from_numpy(self.cache.distance(int(self.places[number])).copy())


def places_of(
    vlm: UnifiedVLM, cache: TokenCache, triplets: Sequence[Triplet], far: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the cache has sources, targets (if there are any) and, with `far`, the distances of both, int32 [N] each.

    Raises:
        RewindError: it lacks one.
    """
    found = []
    for start in range(0, len(triplets), BLOCK):
        pairs = pairs_of(vlm, cache, triplets[start : start + BLOCK])
        sources, targets = (cache.codes.find([pair.keys[n] for pair in pairs if n < len(pair.keys)]) for n in (0, 1))
        apart = cache.distances.find([pair.key or b"" for pair in pairs] if far else [])
        for each in (sources, targets, apart):
            if (each < 0).any():
                number = start + int(np.flatnonzero(each < 0)[0])
                raise RewindError(
                    f"{cache.folder} lacks the pictures of triplet {number}: they changed just now, or it is not one "
                    "folder that all machines share"
                )
        found.append([each.astype(np.int32) for each in (sources, targets, apart)])
    sources, targets, apart = (np.concatenate(each) for each in zip(*found, strict=True))
    return sources, targets, apart
