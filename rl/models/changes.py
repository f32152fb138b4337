"""Which codes of two pictures show something else.

With a codebook of thousands the same wall gets another code from frame to frame, so unequal tokens are no change: true
targets would be charged for their background, and a near-copy would not be seen. What two codes show differs as their
vectors do; how much of that is a change is found on pairs of pictures whose pixels tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from rl.models.picture_tokens import PictureTokens
from rl.pictures import Picture

logger = logging.getLogger("rl")

PIXELS_CHANGED = 16 / 255
"""Mean difference of a cell's pixels, 0..1, from which on it has changed: above a camera's noise and JPEG's."""
PAIRS = 64
"""Pairs that a threshold is found on, the first ones: of 256 tokens each they are 16,384 cells."""
WORTH = 0.02
"""How much more often a threshold has to be right than equality of tokens, else equality stays."""


def calibrated(vlm: PictureTokens, sources: Sequence[Picture], targets: Sequence[Picture]) -> float:
    """The squared distance of code vectors up to which two tokens show the same (`PictureTokens.same_below`).

    The one that tells most often, on changed and on unchanged cells alike, what the pixels tell; 0, which is equality,
    where that is as good or nothing can be learned (no cell has changed, or all have).
    """
    codes = vlm.codes(sources[:PAIRS])
    other = vlm.codes(targets[:PAIRS], codes)
    distance = np.concatenate([vlm.code_distance(a, b) for a, b in zip(codes, other, strict=True)])
    changed = np.concatenate(
        [
            _changed_cells(vlm.to_array(source, a.grid), vlm.to_array(target, a.grid), vlm.cell)
            for source, target, a in zip(sources[:PAIRS], targets[:PAIRS], codes, strict=True)
        ]
    )
    if changed.all() or not changed.any():
        return 0.0
    thresholds = np.unique(np.quantile(distance, np.linspace(0, 1, 201)))
    right = [_right(distance > threshold, changed) for threshold in thresholds]
    best, equality = int(np.argmax(right)), _right(distance > 0, changed)
    found = float(thresholds[best]) if right[best] > equality + WORTH else 0.0
    logger.info("tokens show the same up to a distance of %g (right %.3f, equality %.3f)", found, right[best], equality)
    return found


def _changed_cells(source: np.ndarray, target: np.ndarray, cell: int) -> np.ndarray:
    """uint8 [H, W, 3] twice -> whether the pixels of each cell have changed, bool [K]."""
    difference = np.abs(source.astype(float) - target).mean(-1) / 255
    rows, columns = difference.shape[0] // cell, difference.shape[1] // cell
    found: np.ndarray = difference.reshape(rows, cell, columns, cell).mean((1, 3)).ravel() > PIXELS_CHANGED
    return found


def _right(told: np.ndarray, changed: np.ndarray) -> float:
    """Share of right answers, the mean over changed and unchanged cells."""
    return float((told[changed].mean() + (~told[~changed]).mean()) / 2)
