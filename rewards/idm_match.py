"""Does the inverse model, asked in the open, name the commanded action? (RLIR, arXiv 2509.23958)

RLIR recovers actions from generated frames and pays for each that equals the commanded one. Actions in words have no
classes, so equality is of words here, or of outcomes where a world can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.rivals import SameOutcome
from rl.actions import vector_of
from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate
from rl.words import words_of


class IDMMatch:
    """`idm_match`: 1 if the model's greedy description has the words of the action, in order; else 0.

    Of actions that are vectors, 1 minus their mean distance, each number's as a share of its range (0..1).

    Args:
        idm: the inverse model.
        same_outcome: `(source_picture, a, b) -> bool` where a world can tell that two sentences name one outcome.
    """

    name = "idm_match"

    def __init__(self, idm: InverseDynamics, same_outcome: SameOutcome | None = None) -> None:
        self.idm, self.same_outcome = idm, same_outcome

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        said = descriptions(self.idm, source_image, candidates)
        return [self._likeness(*row) for row in zip(source_image, prompts, said, strict=True)]

    def _likeness(self, source: Picture, action: str, said: str) -> float:
        asked, found = vector_of(action), vector_of(said)
        if asked is not None and found is not None:
            assert self.idm.backbone.actions is not None
            return self.idm.backbone.actions.bins.likeness(asked, found)
        return float(self._matches(source, action, said))

    def _matches(self, source: Picture, action: str, said: str) -> bool:
        if words_of(said) == words_of(action):
            return True
        return bool(said and self.same_outcome is not None and self.same_outcome(source, action, said))


def descriptions(idm: InverseDynamics, source_image: Sequence[Picture], candidates: Sequence[Candidate]) -> list[str]:
    """What the model says, greedily, of each candidate; equal pictures after the same source are described once."""
    keys = [(id(source), c.ids.tobytes()) for source, c in zip(source_image, candidates, strict=True)]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    said = idm.describe([source_image[n] for n in first.values()], [candidates[n] for n in first.values()])
    by_key = dict(zip(first, said, strict=True))
    return [by_key[key] for key in keys]
