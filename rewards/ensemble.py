"""Several inverse models instead of one: mean minus k times spread (arXiv 2310.02743, there with the variance).

What one model wrongly likes, models from other seeds, data or families seldom like too: where they disagree, the reward
is not to be trusted. `Ensemble.spread` is that uncertainty as a number, `calibration` tells how far it can be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.loading import load_rewards
from rewards.rivals import SameOutcome
from rl.errors import RewindError
from rl.evaluation.ranking import auc
from rl.models.opening import load_idm, shares_base
from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.triplets import Candidate


class Ensemble:
    """`ensemble`: mean over the models of one of their rewards, minus k standard deviations.

    `ensemble.spread` has a reward's signature: watch it with `Reward.of(ensemble.spread, "spread", weight=0.0)`.

    Args:
        idm: the first inverse model.
        others: more of them, opened or as base or run folders, in a list unless it is one folder; those on the first
            one's base share its weights.
        k: 0 is the plain mean; the larger, the less a candidate is worth that the models disagree on.
        form: the reward that every model gives: any built-in with an inverse model. Across families, whose tokens
            differ in length, compare 'idm_choice' or 'idm_margin' rather than log-probabilities a token.
        form_arguments: arguments of that reward.
        actions: sentences of the data set, for forms that hold an action against others.
        same_outcome: as for `idm_margin`.
    """

    name = "ensemble"

    def __init__(
        self,
        idm: InverseDynamics,
        others: str | Path | Sequence[InverseDynamics | str | Path],
        k: float = 1.0,
        form: str = "idm_likelihood",
        form_arguments: Mapping[str, Any] | None = None,
        actions: Sequence[str] = (),
        same_outcome: SameOutcome | None = None,
    ) -> None:
        others = [others] if isinstance(others, str | Path) else others
        if not others:
            raise RewindError("an ensemble needs a list of inverse models beside the first: others: [runs/idm-2]")
        if not k >= 0:
            raise RewindError(f"k of an ensemble must be 0 or more, not {k}")
        if form == self.name:
            raise RewindError("an ensemble of ensembles is no form: name the reward that each model gives")
        self.k, self.members = k, [idm, *(_open(other, idm) for other in others)]
        arguments = {form: dict(form_arguments)} if form_arguments else None
        self._rewards: list[Callable[..., Any]] = [
            load_rewards([form], member, actions, same_outcome=same_outcome, arguments=arguments)[0].function
            for member in self.members
        ]

    def __call__(
        self,
        prompts: Sequence[str],
        source_image: Sequence[Picture],
        candidates: Sequence[Candidate],
        log_metric: Callable[[str, float], None],
    ) -> list[float | None]:
        scores_MB = self.by_member(prompts, source_image, candidates)
        spread_B = scores_MB.std(0)
        if np.isfinite(spread_B).any():
            log_metric("ensemble/spread", float(np.nanmean(spread_B)))
        return _known(scores_MB.mean(0) - self.k * spread_B)

    def spread(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        """Standard deviation over the models, a candidate; None where one of them gives no score."""
        return _known(self.by_member(prompts, source_image, candidates).std(0))

    def by_member(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> np.ndarray:
        """Every model's scores, float [model, candidate], NaN where it gives none."""
        columns = {"prompts": prompts, "source_image": source_image, "candidates": candidates}
        return np.array([reward(**columns) for reward in self._rewards], dtype=float)


def calibration(
    scores_N: Sequence[float | None], spreads_N: Sequence[float | None], right_N: Sequence[bool]
) -> dict[str, float]:
    """Does the spread tell which rewards are wrong?

    As many candidates as are right are taken for right, those of the highest scores; a reward is wrong where that is
    not what the candidate is.

    Returns:
        `n` candidates that have a score and a spread; `wrong`, the share of wrong rewards; `auc`, the chance that a
        wrong reward has a larger spread than a right one, ties half: 0.5 says nothing. Left out if none or all are
        wrong.

    Raises:
        RewindError: lists of different lengths, or no candidate with a score and a spread.
    """
    if not len(scores_N) == len(spreads_N) == len(right_N):
        raise RewindError(f"{len(scores_N)} scores, {len(spreads_N)} spreads and {len(right_N)} truths do not fit")
    scores, spreads = np.array(scores_N, dtype=float), np.array(spreads_N, dtype=float)
    known = np.isfinite(scores) & np.isfinite(spreads)
    if not known.any():
        raise RewindError("no candidate has a score and a spread")
    scores, spreads, right = scores[known], spreads[known], np.asarray(right_N, dtype=bool)[known]
    taken = np.zeros(len(right), dtype=bool)
    taken[np.argsort(-scores, kind="stable")[: right.sum()]] = True
    wrong = taken != right
    found = {"n": float(len(right)), "wrong": float(wrong.mean())}
    return found | ({"auc": auc(spreads, wrong)} if wrong.any() and not wrong.all() else {})


def _open(other: InverseDynamics | str | Path, idm: InverseDynamics) -> InverseDynamics:
    if not isinstance(other, str | Path):
        return other
    backbone = idm.backbone
    taken = getattr(backbone.model, "peft_config", {})
    return load_idm(other, backbone if shares_base(other, backbone) else None, adapter=f"idm_{len(taken)}")


def _known(values_B: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values_B]
