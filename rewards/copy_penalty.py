"""Charges for doing nothing: a policy under an inverse model's reward can end in a static video (EVA, arXiv
2603.17808)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.errors import RewindError


class CopyPenalty:
    """`copy_penalty`: -1 for a copy of the source, rising evenly to 0 at `least` changed tokens.

    The counterpart of `keep_unchanged`, which charges for too much change.

    Args:
        least: changed tokens from which on nothing is charged. Better take it from labelled data: the fewest that
            change there. More than 1 also catches a copy with a speck.
    """

    name = "copy_penalty"

    def __init__(self, least: int = 1) -> None:
        if least < 1:
            raise RewindError(f"copy_penalty needs at least 1 changed token, not {least}")
        self.least = least

    def __call__(self, changed_tokens: Sequence[np.ndarray]) -> list[float | None]:
        return [-max(0, self.least - int(np.sum(changed_K))) / self.least for changed_K in changed_tokens]
