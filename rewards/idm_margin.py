"""How much likelier the commanded action is than other actions on the same source: a contrastive reward.

log p(a) - logsumexp over {a, a_1 .. a_K} of sequence log-likelihoods: the log of the posterior of the action among its
rivals, 0 or less. A picture that makes every action likely earns nothing. Without a in the denominator the reward would
be unbounded and would pay for pictures off the manifold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl.errors import RewindError
from rl.images import Picture
from rl.models.dynamics import InverseDynamics
from rl.triplets import Candidate
from rl.unified import words_of

SWAPS = (
    ("left", "right"),
    ("up", "down"),
    ("above", "under"),
    ("above", "below"),
    ("add", "remove"),
    ("open", "close"),
    ("into", "out of"),
    ("red", "blue"),
    ("blue", "yellow"),
    ("green", "purple"),
    ("white", "black"),
    ("circle", "square"),
    ("star", "cross"),
    ("triangle", "ring"),
)
"""Words whose exchange names another action in the same phrasing."""


def word_edits(action: str) -> list[str]:
    """The action with one word exchanged for its counterpart, for each word of `SWAPS` in it."""
    words, found = action.split(), []
    for one, other in [*SWAPS, *((b, a) for a, b in SWAPS)]:
        if one in words:
            found.append(" ".join(other if word == one else word for word in words))
    return list(dict.fromkeys(found))


class IDMMargin:
    """`idm_margin`.

    Args:
        idm: the inverse model.
        actions: sentences of the data set to draw rivals from, the same for all candidates of a source.
        num_rivals: rivals K at most: first what the model itself says of the group's candidates, then word edits, then
            sentences of the data set.
        same_outcome: `(source_picture, a, b) -> bool` where a world can tell that two sentences name one outcome.
    """

    name = "idm_margin"

    def __init__(
        self,
        idm: InverseDynamics,
        actions: Sequence[str] = (),
        num_rivals: int = 8,
        same_outcome: Callable[[Any, str, str], bool] | None = None,
    ) -> None:
        if num_rivals < 1:
            raise RewindError(f"idm_margin needs at least one rival, not {num_rivals}")
        self.idm, self.actions, self.num_rivals, self.same_outcome = idm, list(actions), num_rivals, same_outcome

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        groups: dict[tuple[int, str], list[int]] = {}
        for number, (source, action) in enumerate(zip(source_image, prompts, strict=True)):
            groups.setdefault((id(source), action), []).append(number)
        said = self.idm.describe(list(source_image), list(candidates))
        rows: list[tuple[int, str]] = []
        rivals_of = {}
        for (_, action), numbers in groups.items():
            rivals = self._rivals(source_image[numbers[0]], action, [said[n] for n in numbers])
            for number in numbers:
                rivals_of[number] = len(rivals)
                rows += [(number, words) for words in (action, *rivals)]
        found = self.idm.log_probs(
            [source_image[n] for n, _ in rows], [candidates[n] for n, _ in rows], [words for _, words in rows]
        )
        totals = [float(x.sum()) for x in found]
        scores: dict[int, float | None] = {}
        start = 0
        for numbers in groups.values():
            for number in numbers:
                block = np.array(totals[start : start + 1 + rivals_of[number]])
                start += len(block)
                # Without a rival there is nothing to compare with.
                scores[number] = float(block[0] - np.logaddexp.reduce(block)) if len(block) > 1 else None
        return [scores[number] for number in range(len(candidates))]

    def _rivals(self, source: Picture, action: str, said: Sequence[str]) -> list[str]:
        seen, rivals = {tuple(words_of(action))}, []
        for rival in (*said, *word_edits(action), *self.actions):
            key = tuple(words_of(rival))
            if not key or key in seen:
                continue
            seen.add(key)
            if self.same_outcome is not None and self.same_outcome(source, action, rival):
                continue
            rivals.append(rival)
            if len(rivals) == self.num_rivals:
                break
        return rivals
