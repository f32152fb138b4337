"""The half of a unified model that turns pictures into ids and back: its VQ image tokenizer."""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from rl.codes import Codes, Grid, by_grid
from rl.errors import RewindError
from rl.models.costs import Cost
from rl.models.layout import TokenLayout
from rl.models.memory import in_parts, picture_bytes, rows_that_fit
from rl.models.sizes import PictureSize
from rl.models.tokenizer_key import tokenizer_key
from rl.models.vq import codes_of
from rl.pictures import PictureLike, Views, size_of, to_array, views_of

PIXELS_AT_ONCE = 256
"""Pictures whose pixels are held at once: 200 MiB at 512x512."""


class KnownCodes(Protocol):
    """Where codes are kept that were computed before (`rl.data.tokens.cache.TokenCache`)."""

    def known(self, pictures: Sequence[PictureLike], grid_of: Callable[[int], Grid]) -> list[Codes | None]:
        """The codes of each picture, in the grid that its number is to have; None where they are not known."""

    def learn(self, pictures: Sequence[PictureLike], codes: Sequence[Codes]) -> None:
        """Be told the codes of pictures that were not known."""


class PictureTokens(ABC):
    """Encodes and decodes pictures; each is encoded once. Threads may share it.

    Attributes:
        name: the base's name or folder, for run folders and messages.
        layout: ids of image tokens and markers, and the grammar of a picture.
        picture_size: of the pictures in pixels, or how each gets its own.
        cell: pixels along the side of a square that one code stands for.
        unit: sides of pictures are multiples of so many pixels.
        can_draw: whether ids can be decoded; some checkpoints lack a VQ decoder.
        remembered_pictures: how many pictures' ids are kept, so that no picture is encoded twice.
        remembered_features: the most floats that a picture's features may have for being kept too.
        same_below: squared distance of code vectors up to which two tokens show the same (`changes.calibrated`); 0 is
            equality of tokens.
        cache: where the codes of pictures in files are looked up before they are encoded; None for nowhere.
        max_rows: the most rows or pictures at once, unless a call says otherwise; None for as many as fit in memory.
    """

    name: str
    layout: TokenLayout
    picture_size: PictureSize
    cell: int
    unit: int
    can_draw: bool = True
    remembered_pictures: int = 50_000
    remembered_features: int = 1024
    same_below: float = 0.0
    max_rows: int | None = None
    cache: KnownCodes | None = None
    _seen: dict[tuple[int, bytes], tuple[Tensor, Tensor | None]] | None = None
    _lock: threading.RLock

    def __new__(cls, *_: Any, **__: Any) -> Self:
        vlm = super().__new__(cls)
        vlm._lock = threading.RLock()  # re-entrant, since one role may be used inside another
        return vlm

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}  # a copy has a lock of its own

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def decode_ids(self, ids_BK: Tensor, grid: Grid) -> Tensor:
        """Vocabulary ids [B, K] of pictures of one grid -> uint8 [B, H, W, 3]."""

    @abstractmethod
    def features_pixels(self, images_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float [B, K, D] of the image encoder before quantisation."""

    @abstractmethod
    def quantise(self, features_BKD: Tensor) -> Tensor:
        """Features before quantisation -> vocabulary ids [B, K]."""

    def _views(self, height: int) -> int:
        """How many views an array of `to_array` holds, from its height."""
        return 1 if self.picture_size.own else height // self.picture_size.height

    def grid_of_array(self, array_HWC: np.ndarray) -> Grid:
        """The grid of an array of `to_array`."""
        height, width = array_HWC.shape[:2]
        views = self._views(height)
        return Grid(height // views // self.cell, width // self.cell, views)

    @abstractmethod
    def code_vectors(self) -> Tensor:
        """What the decoder reads of each code, float32 [V, D]."""

    @property
    def image_size(self) -> int | str:
        """The size of pictures as a setting: 512 (square), '384x672' (height x width) or 'own:512' (own shapes)."""
        return self.picture_size.written

    def to_array(self, picture: PictureLike, like: Grid | None = None) -> np.ndarray:
        """A picture of any kind as uint8 RGB [H, W, 3] of the model's size, or of the size of grid `like`.

        Views are one below the other, [views x H, W, 3].
        """
        size = self.picture_size
        if isinstance(picture, Views):
            if size.own:
                raise RewindError(f"views need pictures of one size, not image_size {self.image_size}")
            return np.concatenate([self.to_array(one) for one in picture.pictures])
        if not size.own:
            return to_array(picture, (size.height, size.width))
        if like is not None:
            return to_array(picture, (like.rows * self.cell, like.columns * self.cell))
        return to_array(picture, size.shape(*size_of(picture), self.unit))

    def grid_of(self, picture: PictureLike) -> Grid:
        """The grid that a picture gets; a file that was looked at before is not decoded for it."""
        size = self.picture_size
        height, width = size.shape(*size_of(picture), self.unit) if size.own else (size.height, size.width)
        return Grid(height // self.cell, width // self.cell, views_of(picture))

    def encode(self, images: Sequence[PictureLike], batch_size: int | None = None) -> Tensor:
        """Pictures (uint8 RGB [H, W, 3], PIL or files, any size) -> vocabulary ids, int64 [B, K].

        The image encoder is frozen, so ids are remembered by the picture's pixels: training, labelling and rewards ask
        for the same pictures again and again, and encoding one costs more than reading its action.

        Raises:
            RewindError: pictures that keep their own shape, which is not the usual one: `codes` takes them.
        """
        found = self.codes(images, batch_size=batch_size)
        if {*by_grid(found)} != {self.layout.grammar.grid}:
            fixed = f": open the model with a fixed size, not image_size {self.image_size}"
            raise RewindError(f"this needs pictures of one size and one view{fixed if self.picture_size.own else ''}")
        return torch.tensor(found, device=self.device)

    def codes(
        self, images: Sequence[PictureLike], like: Sequence[Sequence[int]] | None = None, batch_size: int | None = None
    ) -> list[Codes]:
        """Pictures -> the ids of each, with its grid; `like`: pictures whose sizes they get, one each."""
        return [codes for codes, _ in self._encoded(images, like, batch_size, False)]

    def features(self, images: Sequence[PictureLike], batch_size: int | None = None) -> Tensor:
        """Pictures of one size -> features before quantisation, float [B, K, D]; small ones are remembered like ids."""
        return torch.stack(self.features_of(images, batch_size=batch_size)).to(self.device)

    def features_of(
        self, images: Sequence[PictureLike], like: Sequence[Sequence[int]] | None = None, batch_size: int | None = None
    ) -> list[Tensor]:
        """Pictures -> features before quantisation of each, float [K, D]; `like` as for `codes`."""
        found = self._encoded(images, like, batch_size, True)
        return [features for _, features in found if features is not None]

    def _encoded(
        self,
        images: Sequence[PictureLike],
        like: Sequence[Sequence[int]] | None,
        batch_size: int | None,
        with_features: bool,
    ) -> list[tuple[Codes, Tensor | None]]:
        """Ids and features float [K, D] (None where they were neither asked for nor kept) of each picture."""
        if not len(images):
            raise RewindError("there is no picture to encode")
        grids = [None] * len(images) if like is None else [self.layout.grammar_of(ids).grid for ids in like]
        found: list[tuple[Codes, Tensor | None] | None] = [None] * len(images)
        cache = None if with_features else self.cache
        if cache is not None:
            with self._lock:
                known = cache.known(images, lambda number: grids[number] or self.grid_of(images[number]))
            found = [None if codes is None else (codes, None) for codes in known]
        left = [number for number, one in enumerate(found) if one is None]
        for start in range(0, len(left), PIXELS_AT_ONCE):
            part = left[start : start + PIXELS_AT_ONCE]
            arrays = [self.to_array(images[number], grids[number]) for number in part]
            new: list[Codes] = []
            with self._lock:
                for number, one in zip(part, self._remembered(arrays, batch_size, with_features), strict=True):
                    found[number] = one
                    new.append(one[0])
                if cache is not None:
                    cache.learn([images[number] for number in part], new)
        return [one for one in found if one is not None]

    def _remembered(
        self, arrays: Sequence[np.ndarray], batch_size: int | None, with_features: bool
    ) -> list[tuple[Codes, Tensor | None]]:
        seen = self._seen = {} if self._seen is None else self._seen
        keys = [(a.shape[0], hashlib.blake2b(a.tobytes(), digest_size=16).digest()) for a in arrays]
        found = {key: seen[key] for key in keys if key in seen and not (with_features and seen[key][1] is None)}
        fresh = {key: array for key, array in zip(keys, arrays, strict=True) if key not in found}
        for shape in dict.fromkeys(array.shape for array in fresh.values()):
            same = [key for key, array in fresh.items() if array.shape == shape]

            def encode(part: range, same: Sequence[tuple[int, bytes]] = same) -> None:
                names = same[part.start : part.stop]
                ids, features = self.encode_arrays(np.stack([fresh[key] for key in names]))
                small = features[0].numel() <= self.remembered_features
                kept = features.cpu() if small or with_features else [None] * len(names)
                found.update({key: (i, f) for key, i, f in zip(names, ids, kept, strict=True)})
                seen.update({key: (i, f if small else None) for key, i, f in zip(names, ids, kept, strict=True)})

            views = self._views(shape[0])
            in_parts(len(same), batch_size or self.pictures_at_once(64, views), encode)
        for key in list(seen)[: max(0, len(seen) - self.remembered_pictures)]:
            del seen[key]
        grids = [self.grid_of_array(array) for array in arrays]
        return [(Codes(found[key][0].tolist(), grid), found[key][1]) for key, grid in zip(keys, grids, strict=True)]

    def encode_arrays(self, images_BHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Arrays of `to_array` of one shape -> ids int64 [B, K] on the CPU and features float [B, K, D] on `device`."""
        with torch.no_grad(), self._full_precision(), self._lock:
            pixels = torch.from_numpy(images_BHWC)
            views = self._views(pixels.shape[1])
            each = pixels.unflatten(1, (views, -1)).flatten(0, 1)  # a view's codes know nothing of another's
            features = self.features_pixels(each.to(self.device))
            ids = self.quantise(features).cpu().unflatten(0, (-1, views)).flatten(1, 2)
            return ids, features.unflatten(0, (-1, views)).flatten(1, 2)

    def tokenizer_key(self) -> str:
        """A hash of all that decides a picture's codes, 64 hexadecimal digits: weights, size, preprocessing."""
        return tokenizer_key(self)

    def _full_precision(self) -> Any:
        """A trainer's autocast is off: in half precision some codes change."""
        return torch.autocast(self.device.type, enabled=False)

    # ---- what two pictures have in common

    def changed(self, ids_K: Sequence[int] | np.ndarray, other_K: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which tokens of a picture show something else than another's of the same grid, bool [K]."""
        one, other = np.asarray(ids_K), np.asarray(other_K)
        different: np.ndarray = one != other
        return self.code_distance(one, other) > self.same_below if self.same_below else different

    def code_distance(self, ids_K: Sequence[int] | np.ndarray, other_K: Sequence[int] | np.ndarray) -> np.ndarray:
        """Squared distance between the vectors of two pictures' codes, float32 [K]."""
        image_ids, vectors = self.layout.image_ids_V, self.code_vectors()
        one, other = (vectors[codes_of(torch.as_tensor(ids), image_ids).to(vectors.device)] for ids in (ids_K, other_K))
        return (one - other).pow(2).sum(-1).cpu().numpy()  # type: ignore[no-any-return]

    def check_can_draw(self) -> None:
        """Raise a `RewindError` if there is no decoder for pictures."""
        if not self.can_draw:
            raise RewindError(
                f"{self.name} has no VQ decoder, so its pictures cannot be drawn: name a folder or Hub id that has "
                "one, --vq FOLDER (Meta's vqgan.ckpt, or an Anole checkpoint)"
            )

    def decode(
        self, ids_BK: Tensor | np.ndarray, batch_size: int | None = None, grid: Grid | None = None
    ) -> np.ndarray:
        """Vocabulary ids [B, K] of pictures of one grid (None: the usual) -> uint8 RGB [B, H, W, 3].

        `batch_size` at once, or what is quick and fits.
        """
        grid = self.layout.grammar.grid if grid is None else grid
        if batch_size is None:
            # 64 no longer fit a CPU's cache: a quarter slower.
            batch_size = self.pictures_at_once(16 if self.device.type == "cpu" else 64, grid.views)
        ids_BK = torch.as_tensor(ids_BK).to(self.device)
        allowed = torch.isin(ids_BK, self.layout.image_ids_V.to(self.device))
        if not bool(allowed.all()):
            raise RewindError(
                f"token {int(ids_BK[~allowed][0])} is no image token of {self.name}: were these ids made by another?"
            )

        def decoded(part: range) -> Tensor:
            each = ids_BK[part.start : part.stop].unflatten(1, (grid.views, -1)).flatten(0, 1)
            return self.decode_ids(each, grid.one).cpu().unflatten(0, (-1, grid.views)).flatten(1, 2)

        with torch.no_grad(), self._full_precision(), self._lock:
            return torch.cat(in_parts(max(1, len(ids_BK)), batch_size, decoded)).numpy()

    def pictures_at_once(self, usual: int, views: int = 1) -> int:
        """Pictures that the image tokenizer takes at once: `usual` is quick, memory or `max_rows` may ask for fewer.
        Each has so many views, which it takes as pictures of their own.
        """
        fitting = rows_that_fit(Cost(0, views * picture_bytes(self)), 1, self.device, usual=max(1, usual // views))
        return fitting if self.max_rows is None else min(fitting, self.max_rows)
