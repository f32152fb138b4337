"""Which triplets show nearly the same: perceptual hashes of both pictures, and the words."""

from __future__ import annotations

import cv2
import numpy as np

from rl.pictures import Picture, pixels
from rl.triplets import Triplet
from rl.words import words_of

SIDE, KEPT = 64, 16
"""Pixels along a side of the reduced picture, and frequencies along a side that are kept of it: 255 bits a picture."""
BITS = 2 * (KEPT * KEPT - 1)


def picture_hash(picture: Picture) -> int:
    """The signs of a picture's low frequencies around their median (pHash), 255 bits: the same for another size,
    quality or brightness.
    """
    grey = cv2.cvtColor(pixels(picture), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:KEPT, :KEPT].ravel()[1:]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


class Seen:
    """Triplets that have been taken, to be compared with others of the same words.

    Args:
        most: bits of `BITS` in which near-duplicates differ at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._hashes: dict[str, list[tuple[int, int]]] = {}

    def take(self, triplet: Triplet) -> bool:
        """Take a triplet; False if one that is nearly the same has been taken already."""
        before = picture_hash(triplet.source)
        after = 0 if triplet.target is None else picture_hash(triplet.target)
        others = self._hashes.setdefault(" ".join(words_of(triplet.action)), [])
        if any((before ^ a).bit_count() + (after ^ b).bit_count() <= self.most for a, b in others):
            return False
        others.append((before, after))
        return True
