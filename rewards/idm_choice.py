"""Which of a few actions happened? Multiple choice (UNIVERSE, arXiv 2506.17967).

UNIVERSE asks a model that answers questions for a letter. An inverse model is trained only to write actions, so its
answer is read from how likely it finds each option: p(a) / (p(a) + p(a_1) + ... + p(a_K)), sequence likelihoods.
Every candidate of a source is asked with the same options; `idm_margin` also holds the model's own words against it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from rewards.rivals import Rivals, SameOutcome
from rl.errors import RewindError
from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate


class IDMChoice:
    """`idm_choice`: probability of the action among the options, 0..1; None where there is no other option.

    Args:
        idm: the inverse model.
        actions: sentences of the data set to fill up the options with, from a place that depends on the action.
        num_options: options, the action itself included: word edits of it first.
        rivals: which others, `near` or `first` (`rewards.rivals.Rivals`).
        same_outcome: `(source_picture, a, b) -> bool` where a world can tell that two sentences name one outcome.
    """

    name = "idm_choice"

    def __init__(
        self,
        idm: InverseDynamics,
        actions: Sequence[str] = (),
        num_options: int = 4,
        same_outcome: SameOutcome | None = None,
        rivals: str = "near",
    ) -> None:
        if num_options < 2:
            raise RewindError(f"idm_choice needs at least 2 options, not {num_options}")
        self.idm, self.num_options, self.rivals = idm, num_options, Rivals(actions, rivals, same_outcome)

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        options = [self.options(source, action) for source, action in zip(source_image, prompts, strict=True)]
        rows = [(number, words) for number, offered in enumerate(options) for words in offered]
        found = self.idm.log_probs(
            [source_image[n] for n, _ in rows], [candidates[n] for n, _ in rows], [words for _, words in rows]
        )
        totals = iter([float(x.sum()) for x in found])
        scores: list[float | None] = []
        for offered in options:
            block = np.array([next(totals) for _ in offered])
            scores.append(float(np.exp(block[0] - np.logaddexp.reduce(block))) if len(block) > 1 else None)
        return scores

    def options(self, source: Picture, action: str) -> list[str]:
        """The action and what is offered beside it."""
        start = zlib.crc32(action.encode()) % max(1, len(self.rivals.sentences))
        return [action, *self.rivals.of(source, action, self.num_options - 1, start=start)]
