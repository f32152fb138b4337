"""A token cache that grows with what is looked at: nobody has to encode a data set of which a run sees a part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.codes import Codes, Grid
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import BLOCK
from rl.errors import RewindError
from rl.picture_keys import stamp
from rl.pictures import PictureLike

logger = logging.getLogger("rl")

if TYPE_CHECKING:
    from rl.models.picture_tokens import PictureTokens


class GrowingCache(TokenCache):
    """The codes of pictures under one tokenizer, those that were missing among them, once somebody has encoded them.

    They are written a shard at a time: who is killed loses less than one (`encoding.BLOCK` pictures).

    Args:
        folder, vlm: `TokenCache`'s.
    """

    def __init__(self, folder: str | Path, vlm: PictureTokens) -> None:
        super().__init__(folder, vlm)
        self._waiting: dict[bytes, Codes] = {}
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_waiting": {}}

    def known(self, pictures: Sequence[PictureLike], grid_of: Callable[[int], Grid]) -> list[Codes | None]:
        """The codes of each picture, as `TokenCache.known` has them; also those that no shard holds yet."""
        found = super().known(pictures, grid_of)
        left = [n for n, one in enumerate(found) if one is None and stamp(pictures[n]) is not None]
        if self._waiting and left:
            keys = self.keys([pictures[n] for n in left], [grid_of(n) for n in left])
            for number, key in zip(left, keys, strict=True):
                found[number] = self._waiting.get(key)
        return found

    def learn(self, pictures: Sequence[PictureLike], codes: Sequence[Codes]) -> None:
        """Keep the codes of pictures that were not known and lie in files.

        Where they cannot be written, as on a full disk, that is said once, and those pictures are encoded again.
        """
        there = [n for n, picture in enumerate(pictures) if stamp(picture) is not None]
        keys = self.keys([pictures[n] for n in there], [codes[n].grid for n in there])
        self._waiting.update((key, codes[n]) for key, n in zip(keys, there, strict=True))
        if len(self._waiting) >= BLOCK:
            waiting, self._waiting = self._waiting, {}
            try:
                self.append(list(waiting), list(waiting.values()))
            except RewindError as error:
                if not self._told:
                    logger.warning("%s: what it lacks is encoded again", error)
                self._told = True
