"""How sure the forward model is of its own prediction (Vista's reward, arXiv 2405.17398).

Vista takes the agreement of a diffusion model's draws. Image tokens have a likelihood, so here it is the mean
log-probability a token of the picture itself: no inverse model, no judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rl.models.opening import load_fdm, shares_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate

FROZEN = "frozen_fdm"
"""Name of its adapter on a backbone that it shares."""


class FDMConfidence:
    """`fdm_confidence`: mean log-probability a token of the candidate, 0 or less, in nats.

    None where a candidate carries no log-probabilities: drawn greedily, or not drawn at all.

    Args:
        fdm: another forward model that is asked instead, opened or as run folder, e.g. the one that training started
            from: the one that drew a candidate is surest of what it draws anyway, and trained on that it draws one
            picture alone.
        idm: the inverse model, whose base's weights a run folder shares where it can.
    """

    name = "fdm_confidence"

    def __init__(self, fdm: ForwardDynamics | str | Path | None = None, idm: InverseDynamics | None = None) -> None:
        self.fdm = _open(fdm, idm) if isinstance(fdm, str | Path) else fdm

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        if self.fdm is not None:
            return list(self.fdm.score(source_image, candidates, list(prompts)))
        return [float(c.logprobs.mean()) if np.any(c.logprobs) else None for c in candidates]


def _open(run: str | Path, idm: InverseDynamics | None) -> ForwardDynamics:
    backbone = None if idm is None or not shares_base(run, idm.backbone) else idm.backbone
    return load_fdm(run, backbone, adapter=FROZEN)
