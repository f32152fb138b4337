"""How many words of the commanded action the inverse model's own description shares: RLIR's action F1 (arXiv
2509.23958) on words."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.idm_match import descriptions
from rl.actions import vector_of
from rl.errors import RewindError
from rl.evaluation.oracle import token_f1
from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate


class IDMTokenF1:
    """`idm_token_f1`: F1 of the words of the greedy description and of the action, 0..1.

    Graded where `idm_match` is not, but every word counts alike: 'left' for 'right' costs as little as 'the' for 'a'.
    """

    name = "idm_token_f1"

    def __init__(self, idm: InverseDynamics, actions: Sequence[str] = ()) -> None:
        self._check(actions)
        self.idm = idm

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        self._check(prompts)
        said = descriptions(self.idm, source_image, candidates)
        return [token_f1(words, action) for words, action in zip(said, prompts, strict=True)]

    @staticmethod
    def _check(actions: Sequence[str]) -> None:
        if any(vector_of(action) is not None for action in actions):
            raise RewindError("idm_token_f1 compares words, and these actions are vectors: take idm_match")
