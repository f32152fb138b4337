"""What an image tokenizer has made of pictures, kept on disk: each picture is encoded once, ever.

A folder holds, for every tokenizer and picture size, a folder of its own with `codes-*.arrow` (a picture's codes and
the grid that they fill), `distances-*.arrow` (squared feature distances of pairs, for token weights) and
`tokenizer.json`; beside them `files-*.arrow` says which content a file had when it was last read. Shards are only added
(`rl.data.tokens.shards`), so runs may share a folder.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from rl.codes import Codes, Grid
from rl.data.tokens.shards import Shards, lists_of
from rl.errors import RewindError
from rl.paths import expanded
from rl.picture_keys import KEY_BYTES, content_key, key_of, stamp
from rl.pictures import PictureLike
from rl.running.files import read_json, write_whole

if TYPE_CHECKING:
    from rl.models.picture_tokens import PictureTokens

logger = logging.getLogger("rl")
ABOUT_FILE = "tokenizer.json"
_GRID = [pa.field(name, pa.int32()) for name in ("rows", "columns", "views")]
_FILES = [pa.field("content", pa.binary(KEY_BYTES))]
DISTANCES = {"float32": pa.float32(), "float16": pa.float16()}
"""Of feature distances: in half the bytes, token weights are not the very ones that there are without a cache."""


class TokenCache:
    """The codes of pictures under one tokenizer.

    Args:
        folder: made with the first shard; it may hold other tokenizers' codes, which are left as they are.
        vlm: whose tokenizer it is.
        distances: how feature distances are kept, one of `DISTANCES`; None for as they are there, else float32.

    Raises:
        RewindError: the folder holds something else, or distances of this tokenizer that are kept otherwise.
    """

    def __init__(self, folder: str | Path, vlm: PictureTokens, distances: str | None = None) -> None:
        self.folder, key = expanded(folder), vlm.tokenizer_key()
        self.own = self.folder / f"{key[:24]}"
        self._image_ids_V = vlm.layout.image_ids_V.cpu().numpy()
        ranked = np.argsort(self._image_ids_V)
        self._ranked, self._ids = ranked, self._image_ids_V[ranked]
        self._code = np.uint16 if len(ranked) <= 1 << 16 else np.uint32
        self._check(key, vlm)
        self.codes = Shards(self.own, "codes", [*_GRID, pa.field("codes", pa.list_(pa.from_numpy_dtype(self._code)))])
        kept = self._kept_as(distances)
        self._distance = DISTANCES[kept]
        self.distances = Shards(self.own, "distances", [pa.field("distances", pa.list_(self._distance))])
        self.files = Shards(self.folder, "files", _FILES)
        self._new_files: dict[bytes, bytes] = {}
        self._about = {"tokenizer": key, "name": vlm.name, "image_size": vlm.image_size, "codes": len(ranked)}
        self._about |= {"distances": kept} if kept != "float32" else {}

    def __deepcopy__(self, _: Any) -> TokenCache:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_new_files": {}}

    # ---- keys

    def keys(self, pictures: Sequence[PictureLike], grids: Sequence[Grid]) -> list[bytes]:
        """What pictures are found by: content and grid, 16 bytes each. A file is read once, and again if it changes."""
        stamps = [stamp(picture) for picture in pictures]
        known = self.files.find([one or bytes(KEY_BYTES) for one in stamps]).tolist()
        found = []
        for picture, its, place, grid in zip(pictures, stamps, known, grids, strict=True):
            content = self.files.binary(place, "content") if place >= 0 else self._new_files.get(its or b"")
            if content is None:
                content = content_key(picture)
                if its is not None:
                    self._new_files[its] = content
            found.append(key_of(content, repr((grid.rows, grid.columns, grid.views)).encode()))
        return found

    def known(self, pictures: Sequence[PictureLike], grid_of: Callable[[int], Grid]) -> list[Codes | None]:
        """The codes of pictures that lie in files; None for the others, and for those that are not there.

        `grid_of` gives the grid that the picture of a number is to have.
        """
        there = [number for number, picture in enumerate(pictures) if stamp(picture) is not None]
        keys = self.keys([pictures[n] for n in there], [grid_of(n) for n in there])
        found: list[Codes | None] = [None] * len(pictures)
        for number, place in zip(there, self.codes.find(keys).tolist(), strict=True):
            if place >= 0:
                ids, grid = self.picture(place)
                found[number] = Codes(ids.tolist(), grid)
        return found

    def learn(self, pictures: Sequence[PictureLike], codes: Sequence[Codes]) -> None:
        """Told what was encoded since it was not known: a shared cache is filled at the start, and stays as it is."""

    # ---- rows

    def picture(self, place: int) -> tuple[np.ndarray, Grid]:
        """Vocabulary ids int64 [K] of the picture at a place (`codes.find`), and their grid."""
        (grid,) = self.grids(np.array([place]))
        return self._image_ids_V[self.codes.values(place, "codes")], grid

    def grids(self, places: np.ndarray) -> set[Grid]:
        """The grids that occur at some places."""
        numbers = np.stack([self.codes.numbers(places, field.name) for field in _GRID], 1)
        return {Grid(*row) for row in np.unique(numbers, axis=0).tolist()}

    def distance(self, place: int) -> np.ndarray:
        """Squared feature distances float32 [K] of the pair at a place (`distances.find`)."""
        return self.distances.values(place, "distances").astype(np.float32, copy=False)

    def append(self, keys: Sequence[bytes], pictures: Sequence[Codes]) -> None:
        """Add pictures by their keys, with the vocabulary ids of each, and note which files have been read.

        Raises:
            RewindError: they cannot be written, e.g. to a full disk; what is there stays.
        """
        if not (self.own / ABOUT_FILE).is_file():
            self._begin()
        codes = [self._ranked[np.searchsorted(self._ids, np.asarray(ids))].astype(self._code) for ids in pictures]
        grids = np.array([(p.grid.rows, p.grid.columns, p.grid.views) for p in pictures], np.int32).reshape(-1, 3)
        columns = {field.name: pa.array(grids[:, i]) for i, field in enumerate(_GRID)}
        self.codes.append(keys, {**columns, "codes": lists_of(codes, pa.from_numpy_dtype(self._code))})
        self.note_files()

    def append_distances(self, keys: Sequence[bytes], distances: Sequence[np.ndarray]) -> None:
        """Add the distances of pairs by the keys of both (`pair_key`)."""
        kind = self._distance.to_pandas_dtype()
        most = np.finfo(kind).max
        rounded = [np.minimum(one, most).astype(kind, copy=False) for one in distances]
        self.distances.append(keys, {"distances": lists_of(rounded, self._distance)})

    def note_files(self) -> None:
        """Keep which content the files have that were read."""
        new, self._new_files = self._new_files, {}
        self.files.append(list(new), {"content": pa.array(list(new.values()), _FILES[0].type)})

    def refresh(self) -> None:
        """Take in what other processes have added."""
        for shards in (self.codes, self.distances, self.files):
            shards.refresh()

    def remembered(self, name: str, keys: Sequence[bytes], compute: Callable[[], float]) -> float:
        """A number that was computed of pictures, or is now, and is kept beside them."""
        file = self.own / f"{name}-{key_of(*keys).hex()}.json"
        if file.is_file():
            return float(read_json(file)["value"])
        value = compute()
        with suppress(OSError):  # computed again next time
            write_whole(file, json.dumps({"value": value}) + "\n")
        return value

    # ---- whose it is

    def _kept_as(self, distances: str | None) -> str:
        """How distances are kept: as whoever began the folder has said."""
        there = self.own / ABOUT_FILE
        if not there.is_file():
            return distances or "float32"
        kept = str(read_json(there).get("distances", "float32"))
        if distances not in (None, kept):
            raise RewindError(
                f"{self.folder} keeps distances as {kept}: leave --distances {distances} out, or name another folder"
            )
        return kept

    def _check(self, key: str, vlm: PictureTokens) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise RewindError(f"the token cache {self.folder} is a file: name a folder")
        there = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        others = [path.parent for path in self.folder.glob(f"*/{ABOUT_FILE}")]
        beside = [path for path in there if not path.name.startswith(("files-", ".files-")) and path != self.own]
        if beside and not others:
            raise RewindError(
                f"{self.folder} holds {beside[0].name} and no token cache: name a folder of its own for --token_cache"
            )
        if others and self.own not in others:
            about = read_json(others[0] / ABOUT_FILE)
            logger.warning(
                "%s holds the codes of %s (image_size %s), of another image tokenizer or size than those of %s "
                "(image_size %s): they are left as they are, and pictures are encoded anew beside them",
                *(self.folder, about.get("name"), about.get("image_size"), vlm.name, vlm.image_size),
            )

    def _begin(self) -> None:
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            # Several processes may begin at once, each with a file of its own beside it.
            beside = self.own / f".{ABOUT_FILE}-{socket.gethostname()}-{os.getpid()}"
            beside.write_text(json.dumps(self._about, indent=1) + "\n", encoding="utf-8")
            beside.replace(self.own / ABOUT_FILE)
        except OSError as error:
            raise RewindError(
                f"the token cache {self.folder} cannot be written ({error.strerror}): name another"
            ) from error


def pair_key(source: bytes, target: bytes) -> bytes:
    """What the distances of a pair are found by, from the keys of both pictures."""
    return key_of(b"pair", source, target)


def squared_distances(before_KD: torch.Tensor, after_KD: torch.Tensor) -> torch.Tensor:
    """|| before_l - after_l ||^2, float32 [K]."""
    return (before_KD.float() - after_KD.float()).pow(2).sum(-1)
