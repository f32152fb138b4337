"""Mean log-probability a token of the action, given source and prediction (arXiv 2506.06006)."""

from __future__ import annotations

from collections.abc import Sequence

from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate


class IDMLikelihood:
    """`idm_likelihood`: how likely the inverse model finds the commanded action; 0 or less, in nats a token.

    Blind to what should have stayed as it was, and a copy can score well under a weak model: pair it with
    `keep_unchanged`, or use `idm_margin`.
    """

    name = "idm_likelihood"

    def __init__(self, idm: InverseDynamics) -> None:
        self.idm = idm

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        return list(self.idm.score(source_image, candidates, list(prompts)))
