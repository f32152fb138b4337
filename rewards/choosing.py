"""What `rerank` and `rollout` choose by: rewards by name or as functions, loaded once for all that is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.contract import Batch
from rewards.loading import load_rewards
from rewards.mix import check_scale
from rewards.totals import normalised, score
from rl.models.roles import InverseDynamics
from rl.pictures import Picture
from rl.search.best_of_n import Totals
from rl.triplets import Candidate, Scored


def scorer(
    rewards: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
    idm: InverseDynamics | None,
    normalise: bool = False,
    further: Sequence[str] = (),
    run: str | None = None,
) -> tuple[Callable[..., list[Scored]], Totals | None]:
    """`f(candidates, sources, actions, tasks, targets, more)`: a `Scored` each, by rewards that are loaded once for
    data with these further columns; and what normalises the totals of candidates that are compared, or None.

    Raises:
        RewindError: as `load_rewards`; a fitted mix together with `normalise`.
    """
    named = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
    check_scale(named, normalise, "normalise=True")
    loaded = load_rewards(named, idm, columns=further, run=run)

    def score_all(
        candidates: Sequence[Candidate],
        sources: Sequence[Picture],
        actions: Sequence[str],
        tasks: Sequence[str | None],
        targets: Sequence[Picture | None],
        more: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Scored]:
        return score(loaded, Batch(actions, candidates, sources, targets, tasks, more=more))

    return score_all, (lambda group: normalised(loaded, group)) if normalise else None
