"""How likely a frozen forward model finds what truly came, given a sentence (SWIRL, arXiv 2602.06130, phase II).

The mirror of `idm_likelihood`: log p(true target | source, sentence). The sum over all tokens is the first term of the
ELBO of log p(target | source), of which GRPO's KL term at beta 1 is the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rl.errors import RewindError
from rl.models.inputs import token_ids
from rl.models.roles import ForwardDynamics
from rl.pictures import Picture


class FDMLikelihood:
    """`fdm_likelihood`: log-likelihood of the true target in nats, 0 or less; for `train_grpo.py --role idm`.

    A sentence that is empty, or that the model cannot read, counts as if the target had been drawn by chance: it tells
    nothing, and an action-free prompt must not be what pays most.

    Args:
        fdm: the forward model, which does not train.
        changed: count only tokens that show something else than the source: what stays, most sentences explain.
        mean: nats a counted token in place of their sum.
    """

    name = "fdm_likelihood"

    def __init__(self, fdm: ForwardDynamics, changed: bool = False, mean: bool = False) -> None:
        self.fdm, self.changed, self.mean = fdm, changed, mean

    def __call__(
        self, completions: Sequence[str], source_image: Sequence[Picture], target_image: Sequence[Picture]
    ) -> list[float | None]:
        vlm = self.fdm.backbone
        counted = self._counted(source_image, target_image)
        read = [number for number, text in enumerate(completions) if readable(self.fdm, text)]
        scores = self.fdm.log_probs(
            [source_image[n] for n in read], [target_image[n] for n in read], [completions[n] for n in read]
        )
        by_number = dict(zip(read, scores, strict=True))
        chance = -math.log(len(vlm.layout.image_ids_V))
        found: list[float | None] = []
        for number, here in enumerate(counted):
            scored = by_number.get(number)
            # In half precision too the model gives float32; a sum of thousands is taken in double.
            total = chance * int(here.sum()) if scored is None else float(scored[here].sum(dtype=np.float64))
            found.append(total / max(1, int(here.sum())) if self.mean else total)
        return found

    def _counted(self, source_image: Sequence[Picture], target_image: Sequence[Picture]) -> list[np.ndarray]:
        """Which tokens of each target count, bool [K]; a pair that stands there many times is looked at once."""
        vlm = self.fdm.backbone
        sources = token_ids(vlm, source_image)
        targets = token_ids(vlm, target_image, sources)
        if not self.changed:
            return [np.ones(len(target), dtype=bool) for target in targets]
        known: dict[tuple[int, int], np.ndarray] = {}
        keys = [(id(a), id(b)) for a, b in zip(source_image, target_image, strict=True)]
        for key, source, target in zip(keys, sources, targets, strict=True):
            if key not in known:
                known[key] = vlm.changed(target, source)
        return [known[key] for key in keys]


def readable(fdm: ForwardDynamics, text: str) -> bool:
    """Whether a forward model can read a sentence as an action: it is not empty, and no vector of unknown ranges."""
    if not text.strip():
        return False
    try:
        fdm.backbone.check_action(text)
    except RewindError:
        return False
    return True
