"""The public door: open the two roles, draw and choose, roll out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, overload

import numpy as np

from rl.checks import check_normalise, check_thresholds, check_whole
from rl.errors import RewindError
from rl.models.drafting import Counts
from rl.models.inputs import check_actions, token_ids
from rl.models.opening import load_fdm, load_idm
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.pictures import Picture, PictureLike, from_path
from rl.running import siblings
from rl.search.best_of_n import Reranked
from rl.search.best_of_n import rerank as rerank_candidates
from rl.search.redraw import draw_rest, likely
from rl.search.refinement import refine as refine_candidates
from rl.search.rollout import Step
from rl.search.rollout import rollout as roll_out
from rl.triplets import Candidate, Scored

__all__ = ["load_fdm", "load_idm", "rerank", "rollout"]

Rewards: TypeAlias = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]
"""Rewards by name or as functions: several, or one alone."""


@overload
def rerank(
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: PictureLike,
    action: str,
    num_candidates: int = ...,
    rewards: Rewards | None = ...,
    **settings: Any,
) -> Reranked: ...


@overload
def rerank(
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: Sequence[PictureLike],
    action: Sequence[str],
    num_candidates: int = ...,
    rewards: Rewards | None = ...,
    **settings: Any,
) -> list[Reranked]: ...


def rerank(  # type: ignore[misc]
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: PictureLike | Sequence[PictureLike],
    action: str | Sequence[str],
    num_candidates: int = 8,
    rewards: Rewards | None = None,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    task: str | Sequence[str | None] | None = None,
    target_image: PictureLike | Sequence[PictureLike | None] | None = None,
    more: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    normalise: bool = False,
    min_score: float | None = None,
    min_lead: float | None = None,
    good_enough: float | None = None,
    refine: int = 0,
    **sampling: Any,
) -> Reranked | list[Reranked]:
    """Draw candidates and put the best first (arXiv 2506.06006, inference-time verification).

    Args:
        fdm: draws the candidates.
        idm: given to the rewards that need an inverse model; None if none does.
        source: the picture before the action, or the path of its file, or a list of these, which are drawn and scored
            together.
        action: what happens, in words; a list for a list of sources.
        num_candidates: how many are drawn a source; equal pictures are scored once.
        rewards: names of built-ins, paths 'file.py:function', or callables, each with '=WEIGHT' if it is a text; one
            alone needs no list. If not given, the mix that was fitted for the forward model's run (`fit_reward.py`), or
            `idm_likelihood` as in the paper where there is none.
        temperature: of the candidates; low ones are all alike.
        seed: same seed, same result.
        task: the task's name, for rewards that treat tasks differently; a list for a list of sources.
        target_image: the true picture after, for rewards that ask for it, None if unknown; a list for a list of
            sources. Who predicts does not know it: what such a reward chooses is an oracle's choice.
        more: further columns by name, such as a mask, for rewards that ask for them; a list for a list of sources.
        normalise: before summing, measure each reward's scores in standard deviations from the mean of a source's
            candidates (`rewards.score`). Such totals compare the candidates of one draw and nothing else.
        min_score: abstain if the best total is below it.
        min_lead: abstain if the best leads the runner-up by less.
        good_enough: draw 1, 2, 4, ... candidates and stop as soon as the best total is this or more (`.saved`).
        refine: rounds that draw the best candidate's doubtful tokens anew (`rl/search/refinement.py`): half of the
            `num_candidates` are drawn whole, and what sampling the others would cost in tokens goes into the rounds.
        sampling: `max_rows` (the most candidates decoded at once: bounds memory alone), `top_k`, `top_p`,
            `guidance`, as for `ForwardDynamics.sample`.

    Returns:
        A `Reranked` for one source, a list of them for a list.

    Raises:
        RewindError: a reward that cannot be loaded or fails, an empty action, something that is no picture, lists of
            different lengths; `normalise` with `min_score`, `good_enough` or `refine`.
    """
    _check_roles(fdm, idm)
    single = isinstance(action, str)
    if single == isinstance(source, list | tuple):
        raise RewindError("give one source and one action, or a list of sources and a list of actions")
    sources: Sequence[Any] = [from_path(one) for one in ([source] if single else source)]  # type: ignore[union-attr]
    actions: Sequence[str] = [action] if isinstance(action, str) else action
    tasks = [task] * len(sources) if task is None or isinstance(task, str) else list(task)
    targets = _targets(target_image, len(sources), single)
    rows = [more or {}] * len(sources) if more is None or isinstance(more, Mapping) else list(more)
    counts = [len(sources), len(actions), len(tasks), len(targets), len(rows)]
    if len(set(counts)) > 1:
        told = "{} sources, {} actions, {} tasks, {} targets and {} rows of further columns do not fit together"
        raise RewindError(told.format(*counts))
    rules = {"min_score": min_score, "min_lead": min_lead, "good_enough": good_enough}
    check_whole("num_candidates", num_candidates, least=1)
    check_thresholds(rules)
    fdm.check(num_candidates, temperature, seed=seed)
    check_whole("refine", refine)
    check_normalise(normalise, min_score=min_score, good_enough=good_enough, refine=refine)
    if refine < 0 or (refine and num_candidates < 2):
        raise RewindError("refinement takes 0 or more rounds, and at least 2 candidates to share out")
    sampling |= {"temperature": temperature, "seed": seed}
    by = _default(_run_of(fdm), temperature) if rewards is None else rewards
    siblings.need("rewards")
    from rewards.choosing import scorer

    score_all, totals = scorer(by, idm, normalise, [name for row in rows for name in row], _run_of(fdm))

    def draw(numbers: Sequence[int], first: int, count: int) -> list[list[Candidate]]:
        chosen = [sources[n] for n in numbers], [actions[n] for n in numbers]
        return fdm.sample(*chosen, num_samples=count, first=first, **sampling)

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        columns = ([row[n] for n in numbers] for row in (sources, actions, tasks, targets, rows))
        return score_all(candidates, *columns)

    whole = num_candidates - num_candidates // 2 if refine else num_candidates
    found = rerank_candidates(draw, judge, len(sources), whole, **rules, totals=totals)
    if refine:
        source_ids = [np.array(ids) for ids in token_ids(fdm.backbone, sources)]
        found = refine_candidates(
            draw_rest(fdm, sources, actions, sampling),
            judge,
            found,
            source_ids,
            [(num_candidates - whole) * len(ids) for ids in source_ids],
            likely=likely(fdm, sources, actions, temperature) if temperature > 0 else None,
            rounds=refine,
            max_candidates=num_candidates,
            **rules,
        )
    return found[0] if single else found


def rollout(
    fdm: ForwardDynamics,
    source: PictureLike,
    actions: Sequence[str],
    idm: InverseDynamics | None = None,
    num_candidates: int = 1,
    rewards: Rewards | None = None,
    *,
    beam: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    task: Sequence[str | None] | None = None,
    target_image: Sequence[PictureLike | None] | None = None,
    normalise: bool = False,
    min_score: float | None = None,
    min_lead: float | None = None,
    **sampling: Any,
) -> list[Step]:
    """Carry out several actions one after the other; each prediction is the next source.

    Without `idm` and `rewards` one sample a step is taken as it comes; among several, the mix that was fitted for the
    forward model's run chooses, where none of its rewards asks for an inverse model.

    Args:
        fdm: draws the candidates.
        source: the picture before the first action, or the path of its file.
        actions: a sentence a step.
        idm: given to the rewards that need one; on its own it means what `rerank` chooses by.
        num_candidates: candidates a step (with a beam: for each of its pictures); the best one goes on.
        rewards: as for `rerank`; a `source_image` after the first step is a `Candidate`, of which `np.asarray` is the
            picture.
        beam: trajectories kept, compared by the sum of their totals; 1 goes on with the best of each step.
        temperature: of the candidates.
        seed: same seed, same result; the noise of every step is its own.
        task: a name a step, for rewards that treat tasks differently.
        target_image: a true picture a step, None where unknown, for rewards that ask for it (see `rerank`).
        normalise: as for `rerank`; with a beam, among the candidates of all its pictures at a step, which are compared
            with each other.
        min_score, min_lead: a step below these says `abstained`; the rollout goes on all the same.
        sampling: `max_rows`, `top_k`, `top_p`, `guidance`, as for `ForwardDynamics.sample`.

    Returns:
        A `Step` an action (`.image`, `.score`, `.best`, `.candidates`, `.lead`, `.abstained`, `.passes`, `.accepted`).

    Raises:
        RewindError: no action or an empty one, several candidates and nothing to choose by, tasks or targets that are
            not one an action, `normalise` with `min_score`.
    """
    _check_roles(fdm, idm)
    if isinstance(actions, str) or not hasattr(actions, "__len__"):
        raise RewindError(f"a rollout takes a list of actions, not one {type(actions).__name__}")
    check_actions(actions)
    rules = {"min_score": min_score, "min_lead": min_lead}
    check_whole("num_candidates", num_candidates, least=1)
    check_thresholds(rules)
    fdm.check(num_candidates, temperature, seed=seed)
    by = rewards
    if by is None and (idm is not None or num_candidates > 1):
        by = _default(_run_of(fdm), temperature)
        if idm is None and by != ["fitted"]:  # the paper's asks an inverse model
            raise RewindError(
                "several candidates need something to choose by: give idm= or rewards=, or num_candidates=1"
            )
    tasks = [None] * len(actions) if task is None else list(task)
    if len(tasks) != len(actions):
        raise RewindError(f"{len(tasks)} tasks and {len(actions)} actions: give one task an action")
    targets = [None] * len(actions) if target_image is None else [from_path(one) for one in target_image]
    if len(targets) != len(actions):
        raise RewindError(f"{len(targets)} target pictures and {len(actions)} actions: give one an action, or None")
    check_normalise(normalise, min_score=min_score)
    sampling |= {"temperature": temperature, "seed": seed}
    score_all, totals = None, None
    if by is not None:
        siblings.need("rewards")
        from rewards.choosing import scorer

        score_all, totals = scorer(by, idm, normalise, run=_run_of(fdm))
    counts: list[Counts] = []

    def draw(step: int, ends: Sequence[Picture | Candidate]) -> list[list[Candidate]]:
        before = replace(fdm.counts)
        drawn = fdm.sample(ends, [actions[step]] * len(ends), num_samples=num_candidates, step=step, **sampling)
        counts.append(fdm.counts.since(before))
        return drawn

    def judge(step: int, ends: Sequence[Picture | Candidate], candidates: Sequence[Candidate]) -> list[Scored]:
        assert score_all is not None
        count = len(candidates)
        columns = ([row[step]] * count for row in (actions, tasks, targets))
        return score_all(candidates, ends, *columns)

    chosen_by = judge if score_all is not None else None
    steps = roll_out(draw, chosen_by, from_path(source), actions, beam=beam, **rules, totals=totals)
    return [replace(step, passes=c.passes, accepted=c.accepted) for step, c in zip(steps, counts, strict=True)]


def _targets(given: Any, count: int, single: bool) -> list[Picture | None]:
    """A target a source, None where it is unknown."""
    if given is None:
        return [None] * count
    if single == isinstance(given, list | tuple):
        raise RewindError("give one target_image for one source, or a list (None where unknown) for a list of sources")
    return [from_path(one) for one in ([given] if single else given)]


def _run_of(fdm: Any) -> str | None:
    """Where a model comes from; one of the user's own making, which only draws, need not say."""
    return getattr(fdm, "run", None)


def _default(run: str | None, temperature: float) -> list[str]:
    siblings.need("rewards")
    from rewards.mix import default_rewards

    return default_rewards(run, temperature)


def _check_roles(fdm: Any, idm: Any) -> None:
    """Raise a `RewindError` if the two models stand in each other's place."""
    if isinstance(fdm, InverseDynamics) or isinstance(idm, ForwardDynamics):
        raise RewindError("the forward model draws and the inverse one judges: swap the two")
