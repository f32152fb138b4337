"""Charges for changing more of the picture than the action needs: what an IDM reward is blind to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.errors import RewindError


class KeepUnchanged:
    """`keep_unchanged`: minus the tokens changed beyond what is free, in units of what is free; 0 or less.

    -1 is twice as much change as the action may need, so that a weight means the same for 16 tokens and for 1,024.

    Args:
        free: tokens that may change at no cost, a task each, e.g. {"move": 2}; `default` for tasks that are not named.
        default: free tokens of any other task; None is an eighth of the picture. Better take both from labelled data:
            how many tokens change there.
    """

    name = "keep_unchanged"

    def __init__(self, free: dict[str, float] | None = None, default: float | None = None) -> None:
        self.free, self.default = dict(free or {}), default
        if any(value < 0 for value in (*self.free.values(), default or 0.0)):
            raise RewindError("the number of tokens that may change freely must be 0 or more")

    def __call__(self, changed_tokens: Sequence[np.ndarray], task: Sequence[str | None]) -> list[float | None]:
        scores: list[float | None] = []
        for changed_K, name in zip(changed_tokens, task, strict=True):
            changed = int(np.sum(changed_K))
            otherwise = len(changed_K) / 8 if self.default is None else self.default
            free = self.free.get(name, otherwise) if name is not None else otherwise
            scores.append(-max(0.0, changed - free) / max(free, 1.0))
        return scores
