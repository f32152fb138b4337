"""Did the commanded action happen, yes or no? (UNIVERSE, arXiv 2506.17967)

UNIVERSE asks a model that answers questions. An inverse model is trained only to write actions and knows no 'yes', so
its answer is 'yes' where it finds the action likely enough, with nothing offered beside it: mean log-probability a
token at or above a threshold. A model that does answer questions can be asked as a judge instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rl.errors import RewindError
from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate


class IDMYesNo:
    """`idm_yes_no`: 1 for yes, 0 for no.

    Args:
        idm: the inverse model.
        threshold: the least mean log-probability a token of a yes, in nats, below 0. The default is that a word is as
            likely as all others together; better take the one that tells true targets from others on labelled data.
    """

    name = "idm_yes_no"

    def __init__(self, idm: InverseDynamics, threshold: float = math.log(0.5)) -> None:
        if not (math.isfinite(threshold) and threshold < 0):
            raise RewindError(f"the threshold of idm_yes_no is a log-probability, below 0, not {threshold}")
        self.idm, self.threshold = idm, threshold

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        found = self.idm.score(source_image, candidates, list(prompts))
        return [float(score >= self.threshold) for score in found]
