"""Pictures of triplets into a token cache: what is missing is encoded on the device, a block at a time.

Blocks are fixed parts of the list of triplets. A block is one shard, so whoever is killed loses one block, and goes on
to the very same files; several processes take every n-th block each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rl.codes import Codes, Grid
from rl.data.tokens.cache import TokenCache, pair_key, squared_distances
from rl.data.tokens.shards import remove_torn
from rl.errors import RewindError
from rl.pictures import Picture, views_of
from rl.triplets import Triplet

if TYPE_CHECKING:
    from rl.models.picture_tokens import PictureTokens

BLOCK = 256
"""Triplets a shard."""
PART = 32
"""Triplets whose pictures are decoded while those of the part before are encoded; their features are kept at once."""
BATCH = 16
"""Pictures that are encoded at once, always: else the last bits of a picture's features would depend on how many."""
Encoded = tuple[Codes, Tensor]


@dataclass
class Counts:
    """What became of pictures and pairs."""

    encoded: int = 0
    known: int = 0
    pairs: int = 0
    unreadable: list[str] = field(default_factory=list)

    def __add__(self, other: Counts) -> Counts:
        numbers = (getattr(self, name) + getattr(other, name) for name in ("encoded", "known", "pairs", "unreadable"))
        return Counts(*numbers)


@dataclass(frozen=True)
class _Pair:
    """A triplet's pictures with the grids that they get, by key."""

    keys: tuple[bytes, ...]
    pictures: tuple[Picture, ...]
    grids: tuple[Grid, ...]

    @property
    def key(self) -> bytes | None:
        return pair_key(*self.keys) if len(self.keys) == 2 else None


def encode_missing(
    vlm: PictureTokens,
    cache: TokenCache,
    triplets: Sequence[Triplet],
    *,
    distances: bool = False,
    shard: tuple[int, int] = (0, 1),
    skip_unreadable: bool = False,
    progress: Callable[[int], Any] = lambda _: None,
) -> Counts:
    """Encode what the cache lacks of triplets' pictures, and of their feature distances, and add it block by block.

    Args:
        vlm: the backbone, on its device.
        cache: its token cache.
        triplets: sources, and targets where there are any.
        distances: of source and target, too, for token weights.
        shard: which part of the blocks is this process's, I of N.
        skip_unreadable: leave out pictures that cannot be read and name them, instead of stopping there.
        progress: is told how many triplets have been looked at.

    Raises:
        RewindError: a picture that cannot be read, or shards that cannot be written; what is there stays.
    """
    counts = Counts()
    with ThreadPoolExecutor(8) as pool:
        for start in range(shard[0] * BLOCK, len(triplets), shard[1] * BLOCK):
            block = triplets[start : start + BLOCK]
            _encode_block(vlm, cache, block, distances, counts, pool, skip_unreadable)
            progress(len(block))
    remove_torn(cache.own)
    remove_torn(cache.folder)
    return counts


def pairs_of(
    vlm: PictureTokens, cache: TokenCache, triplets: Sequence[Triplet], unreadable: list[str] | None = None
) -> list[_Pair]:
    """The pictures of triplets with their keys; those that cannot be read are named in `unreadable` if it is given."""
    found = []
    for triplet in triplets:
        pictures = (triplet.source,) if triplet.target is None else (triplet.source, triplet.target)
        try:
            grids = grids_of(vlm, triplet)[: len(pictures)]
            found.append(_Pair(tuple(cache.keys(pictures, grids)), pictures, grids))
        except RewindError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
    return found


def grids_of(vlm: PictureTokens, triplet: Triplet) -> tuple[Grid, Grid]:
    """The grid of a triplet's source, and the one that its target gets: the source's."""
    grid = vlm.grid_of(triplet.source)
    views = views_of(triplet.source if triplet.target is None else triplet.target)
    return grid, Grid(grid.rows, grid.columns, views)


def _encode_block(
    vlm: PictureTokens,
    cache: TokenCache,
    triplets: Sequence[Triplet],
    distances: bool,
    counts: Counts,
    pool: ThreadPoolExecutor,
    skip_unreadable: bool,
) -> None:
    pairs = pairs_of(vlm, cache, triplets, counts.unreadable if skip_unreadable else None)
    keys = list(dict.fromkeys(key for pair in pairs for key in pair.keys))
    missing = {key for key, place in zip(keys, cache.codes.find(keys).tolist(), strict=True) if place < 0}
    far = list(dict.fromkeys(pair.key for pair in pairs if pair.key is not None)) if distances else []
    missing_far = {key for key, place in zip(far, cache.distances.find(far).tolist(), strict=True) if place < 0}
    counts.known += len(keys) - len(missing)
    codes: dict[bytes, Codes] = {}
    apart: dict[bytes, np.ndarray] = {}
    unread: list[str] = []
    parts = [pairs[at : at + PART] for at in range(0, len(pairs), PART)]
    for part, found in _encoded(vlm, parts, missing, missing_far, pool, unread):
        codes |= {key: one for key, (one, _) in found.items() if key in missing}
        for pair in part:
            if pair.key in missing_far and pair.key not in apart and all(key in found for key in pair.keys):
                before, after = (found[key][1] for key in pair.keys)
                apart[pair.key] = squared_distances(before, after).cpu().numpy()
    if unread and not skip_unreadable:
        raise RewindError(unread[0])
    counts.unreadable += unread
    cache.append(list(codes), list(codes.values()))
    cache.append_distances(list(apart), list(apart.values()))
    counts.encoded += len(codes)
    counts.pairs += len(apart)


def _encoded(
    vlm: PictureTokens,
    parts: Sequence[Sequence[_Pair]],
    missing: set[bytes],
    missing_far: set[bytes],
    pool: ThreadPoolExecutor,
    unread: list[str],
) -> Iterator[tuple[Sequence[_Pair], dict[bytes, Encoded]]]:
    """Each part with what had to be encoded for it; the next part's pictures are decoded meanwhile."""
    done: set[bytes] = set()

    def begin(part: Sequence[_Pair]) -> dict[bytes, Future[np.ndarray]]:
        wanted = {}
        for pair in part:
            for key, picture, grid in zip(pair.keys, pair.pictures, pair.grids, strict=True):
                if pair.key in missing_far or (key in missing and key not in done):
                    wanted[key] = picture, grid if vlm.picture_size.own else None
        done.update(wanted)
        return {key: pool.submit(vlm.to_array, picture, grid) for key, (picture, grid) in wanted.items()}

    ahead = begin(parts[0]) if parts else {}
    for number, part in enumerate(parts):
        now, ahead = ahead, begin(parts[number + 1]) if number + 1 < len(parts) else {}
        arrays = {}
        for key, future in now.items():
            try:
                arrays[key] = future.result()
            except RewindError as error:
                unread.append(str(error))
        yield part, _by_shape(vlm, arrays)


def _by_shape(vlm: PictureTokens, arrays: dict[bytes, np.ndarray]) -> dict[bytes, Encoded]:
    """Codes and features of arrays, those of one shape together."""
    found: dict[bytes, Encoded] = {}
    for shape in dict.fromkeys(array.shape for array in arrays.values()):
        same = [key for key, array in arrays.items() if array.shape == shape]
        grid = vlm.grid_of_array(arrays[same[0]])
        at_once = min(BATCH, vlm.pictures_at_once(BATCH, grid.views))
        for start in range(0, len(same), at_once):
            names = same[start : start + at_once]
            filled = [*names, *names[:1] * (at_once - len(names))]
            ids, features = vlm.encode_arrays(np.stack([arrays[key] for key in filled]))
            found.update({key: (Codes(ids[n].tolist(), grid), features[n]) for n, key in enumerate(names)})
    return found


def read_from(
    folder: str | Path | None,
    backbones: Sequence[PictureTokens],
    triplets: Sequence[Triplet],
    *,
    skip_unreadable: bool = False,
) -> None:
    """Let backbones read the codes of this process's triplets from a cache, if one was given, each of its tokenizer's.

    Call it when the output folder is claimed: what is missing is encoded; with `skip_unreadable` not what cannot be
    read, for callers that leave that out themselves.
    """
    for vlm in {id(vlm): vlm for vlm in backbones if folder is not None}.values():
        assert folder is not None
        cache = TokenCache(folder, vlm)
        encode_missing(vlm, cache, triplets, skip_unreadable=skip_unreadable)
        vlm.cache = cache
