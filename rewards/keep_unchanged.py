"""Charges for changing more of the picture than the action needs: what an IDM reward is blind to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.errors import RewindError
from rl.words import words_of

NEAREST = 8


class KeepUnchanged:
    """`keep_unchanged`: minus the tokens changed beyond what is free, in units of what is free; 0 or less.

    -1 is twice as much change as the action may need, so that a weight means the same for 16 tokens and for 1,024.

    Args:
        free: tokens that may change at no cost, a task each, e.g. {"move": 2}; `default` for tasks that are not named.
        usual: the same a sentence, for data without tasks: a sentence that is not there may change what the nearest
            ones usually do, the mean of up to `NEAREST`.
        default: free tokens of any other task; None is an eighth of the picture. Better take both from labelled data:
            how many tokens change there.
    """

    name = "keep_unchanged"

    def __init__(
        self,
        free: dict[str, float] | None = None,
        default: float | None = None,
        usual: dict[str, float] | None = None,
    ) -> None:
        self.free, self.default, self.usual = dict(free or {}), default, dict(usual or {})
        self._words = {sentence: set(words_of(sentence)) for sentence in self.usual}
        self._found: dict[str, float] = {}
        if any(value < 0 for value in (*self.free.values(), *self.usual.values(), default or 0.0)):
            raise RewindError("the number of tokens that may change freely must be 0 or more")

    def __call__(
        self, changed_tokens: Sequence[np.ndarray], task: Sequence[str | None], prompts: Sequence[str] = ()
    ) -> list[float | None]:
        scores: list[float | None] = []
        for number, (changed_K, name) in enumerate(zip(changed_tokens, task, strict=True)):
            changed = int(np.sum(changed_K))
            otherwise = len(changed_K) / 8 if self.default is None else self.default
            if self.usual and name not in self.free and number < len(prompts):
                otherwise = self._of_sentence(prompts[number], otherwise)
            free = self.free.get(name, otherwise) if name is not None else otherwise
            scores.append(charge(changed, free))
        return scores

    def _of_sentence(self, action: str, otherwise: float) -> float:
        """What usually changes at a sentence; `otherwise` where no known one shares a word with it."""
        if action in self.usual:
            return self.usual[action]
        if action not in self._found:
            self._found[action] = self.of_nearest(action, otherwise)
        return self._found[action]

    def of_nearest(self, action: str, otherwise: float) -> float:
        """What usually changes at the sentences that share most words with one, that one itself left out."""
        words = set(words_of(action))
        alike = {one: len(words & known) / len(words | known) for one, known in self._words.items() if words & known}
        alike.pop(action, None)
        near = sorted(alike, key=lambda one: -alike[one])[:NEAREST]
        return float(np.mean([self.usual[one] for one in near])) if near else otherwise


def charge(changed: int, free: float) -> float:
    """Minus the tokens changed beyond what is free, in units of what is free."""
    return -max(0.0, changed - free) / max(free, 1.0)
