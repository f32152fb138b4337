"""The public door: open the two roles from a base or a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch

from rl.errors import RewindError
from rl.images import Picture
from rl.models.bases import adapter_folder, base_of_adapter, load_base
from rl.models.dynamics import ForwardDynamics, InverseDynamics, check_actions, token_ids
from rl.search.best_of_n import Reranked
from rl.search.best_of_n import rerank as rerank_candidates
from rl.search.refinement import refine as refine_candidates
from rl.search.rollout import Step
from rl.search.rollout import rollout as roll_out
from rl.triplets import Candidate, Scored
from rl.unified import UnifiedVLM

Rewards: TypeAlias = Sequence[str | Callable[..., Any]]
FDM_ADAPTER, IDM_ADAPTER = "default", "idm"
"""Adapter names on a shared backbone; TRL expects the policy's to be `default`."""


def load_fdm(base_or_run: str | Path, backbone: UnifiedVLM | None = None) -> ForwardDynamics:
    """A forward dynamics model from a base (by name or folder) or from a run folder, whose adapter names its base.

    Pass `backbone` to put the run's adapter on weights that are already loaded.
    """
    return ForwardDynamics(*_open(base_or_run, backbone, FDM_ADAPTER))


def load_idm(
    base_or_run: str | Path, backbone: UnifiedVLM | None = None, adapter: str = IDM_ADAPTER
) -> InverseDynamics:
    """An inverse dynamics model; with `backbone=fdm.backbone` it is a second adapter on the same weights.

    A second inverse model on one backbone needs another name for its `adapter`.
    """
    return InverseDynamics(*_open(base_or_run, backbone, adapter))


@overload
def rerank(
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: Picture,
    action: str,
    num_candidates: int = ...,
    rewards: Rewards = ...,
    **settings: Any,
) -> Reranked: ...


@overload
def rerank(
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: Sequence[Picture],
    action: Sequence[str],
    num_candidates: int = ...,
    rewards: Rewards = ...,
    **settings: Any,
) -> list[Reranked]: ...


def rerank(  # type: ignore[misc]
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: Picture | Sequence[Picture],
    action: str | Sequence[str],
    num_candidates: int = 8,
    rewards: Rewards = ("idm_likelihood",),
    *,
    temperature: float = 1.0,
    seed: int = 0,
    task: str | Sequence[str | None] | None = None,
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
        source: the picture before the action, or a list of pictures, which are drawn and scored together.
        action: what happens, in words; a list for a list of sources.
        num_candidates: how many are drawn a source; equal pictures are scored once.
        rewards: names of built-ins, paths 'file.py:function', or callables, each with '=WEIGHT' if it is a text.
        temperature: of the candidates; low ones are all alike.
        seed: same seed, same result.
        task: the task's name, for rewards that treat tasks differently; a list for a list of sources.
        min_score: abstain if the best total is below it.
        min_lead: abstain if the best leads the runner-up by less.
        good_enough: draw 1, 2, 4, ... candidates and stop as soon as the best total is this or more (`.saved`).
        refine: rounds that draw the best candidate's doubtful tokens anew (`rl/search/refinement.py`): half of the
            `num_candidates` are drawn whole, and what sampling the others would cost in tokens goes into the rounds.
        sampling: `max_rows` (candidates decoded at once: bounds memory, changes nothing else), `top_k`, `top_p`,
            `guidance`, as for `ForwardDynamics.sample`.

    Returns:
        A `Reranked` for one source, a list of them for a list.

    Raises:
        RewindError: a reward that cannot be loaded or fails, an empty action, something that is no picture, lists of
            different lengths.
    """
    single = isinstance(action, str)
    if single == isinstance(source, list | tuple):
        raise RewindError("give one source and one action, or a list of sources and a list of actions")
    sources: Sequence[Any] = [source] if single else source  # type: ignore[assignment]
    actions: Sequence[str] = [action] if isinstance(action, str) else action
    tasks = [task] * len(sources) if task is None or isinstance(task, str) else list(task)
    if not len(sources) == len(actions) == len(tasks):
        raise RewindError(f"{len(sources)} sources, {len(actions)} actions and {len(tasks)} tasks do not fit together")
    fdm.check(num_candidates, temperature, seed=seed)
    if refine < 0 or (refine and num_candidates < 2):
        raise RewindError("refinement takes 0 or more rounds, and at least 2 candidates to share out")
    sampling |= {"temperature": temperature, "seed": seed}
    score_all = _scorer(rewards, idm)

    def draw(numbers: Sequence[int], first: int, count: int) -> list[list[Candidate]]:
        chosen = [sources[n] for n in numbers], [actions[n] for n in numbers]
        return fdm.sample(*chosen, num_samples=count, first=first, **sampling)

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        columns = ([row[n] for n in numbers] for row in (sources, actions, tasks))
        return score_all(candidates, *columns)

    whole = num_candidates - num_candidates // 2 if refine else num_candidates
    rules = {"min_score": min_score, "min_lead": min_lead, "good_enough": good_enough}
    found = rerank_candidates(draw, judge, len(sources), whole, **rules)
    if refine:
        found = refine_candidates(
            _draw_rest(fdm, sources, actions, sampling),
            judge,
            found,
            [np.array(ids) for ids in token_ids(fdm.backbone, sources)],
            (num_candidates - whole) * fdm.backbone.layout.tokens_per_image,
            rounds=refine,
            max_candidates=num_candidates,
            **rules,
        )
    return found[0] if single else found


def _draw_rest(
    fdm: ForwardDynamics, sources: Sequence[Picture], actions: Sequence[str], sampling: dict[str, Any]
) -> Callable[..., list[list[Candidate]]]:
    """What `refine` draws with: candidates of some sources with some tokens kept."""

    def draw_rest(
        step: int, numbers: Sequence[int], kept: Sequence[np.ndarray], counts: Sequence[int]
    ) -> list[list[Candidate]]:
        drawn: dict[int, list[Candidate]] = {}
        for count in sorted(set(counts)):  # sources that draw equally many are drawn together
            rows = [row for row, wanted in enumerate(counts) if wanted == count]
            chosen = [sources[numbers[row]] for row in rows], [actions[numbers[row]] for row in rows]
            settings = {**sampling, "step": step, "kept": [kept[row] for row in rows]}
            drawn |= dict(zip(rows, fdm.sample(*chosen, num_samples=count, **settings), strict=True))
        return [drawn[row] for row in range(len(counts))]

    return draw_rest


def rollout(
    fdm: ForwardDynamics,
    source: Picture,
    actions: Sequence[str],
    idm: InverseDynamics | None = None,
    num_candidates: int = 1,
    rewards: Rewards | None = None,
    *,
    beam: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    task: Sequence[str | None] | None = None,
    min_score: float | None = None,
    min_lead: float | None = None,
    **sampling: Any,
) -> list[Step]:
    """Carry out several actions one after the other; each prediction is the next source.

    Without `idm` and `rewards` the model's samples are taken as they come.

    Args:
        fdm: draws the candidates.
        source: the picture before the first action.
        actions: a sentence a step.
        idm: given to the rewards that need one; on its own it means `idm_likelihood`.
        num_candidates: candidates a step (with a beam: for each of its pictures); the best one goes on.
        rewards: as for `rerank`; a `source_image` after the first step is a `Candidate`, of which `np.asarray` is the
            picture.
        beam: trajectories kept, compared by the sum of their totals; 1 goes on with the best of each step.
        temperature: of the candidates.
        seed: same seed, same result; the noise of every step is its own.
        task: a name a step, for rewards that treat tasks differently.
        min_score, min_lead: a step below these says `abstained`; the rollout goes on all the same.
        sampling: `max_rows`, `top_k`, `top_p`, `guidance`, as for `ForwardDynamics.sample`.

    Returns:
        A `Step` an action (`.image`, `.score`, `.best`, `.candidates`, `.lead`, `.abstained`).

    Raises:
        RewindError: no action or an empty one, several candidates and nothing to choose by, as many tasks as there are
            no actions.
    """
    if isinstance(actions, str):
        raise RewindError("a rollout takes a list of actions, not one sentence")
    check_actions(actions)
    fdm.check(num_candidates, temperature, seed=seed)
    if rewards is None and idm is not None:
        rewards = ("idm_likelihood",)
    if rewards is None and num_candidates > 1:
        raise RewindError("several candidates need something to choose by: give idm= or rewards=, or num_candidates=1")
    tasks = [None] * len(actions) if task is None else list(task)
    if len(tasks) != len(actions):
        raise RewindError(f"{len(tasks)} tasks and {len(actions)} actions: give one task an action")
    sampling |= {"temperature": temperature, "seed": seed}
    score_all = None if rewards is None else _scorer(rewards, idm)

    def draw(step: int, ends: Sequence[Picture | Candidate]) -> list[list[Candidate]]:
        return fdm.sample(ends, [actions[step]] * len(ends), num_samples=num_candidates, step=step, **sampling)

    def judge(step: int, ends: Sequence[Picture | Candidate], candidates: Sequence[Candidate]) -> list[Scored]:
        assert score_all is not None
        count = len(candidates)
        return score_all(candidates, ends, [actions[step]] * count, [tasks[step]] * count)

    rules = {"min_score": min_score, "min_lead": min_lead}
    return roll_out(draw, judge if score_all is not None else None, source, actions, beam=beam, **rules)


def _scorer(rewards: Rewards, idm: InverseDynamics | None) -> Callable[..., list[Scored]]:
    """`f(candidates, sources, actions, tasks)`: a `Scored` each, by rewards that are loaded once."""
    from rewards import Batch, load_rewards, score

    loaded = load_rewards(list(rewards), idm)

    def score_all(
        candidates: Sequence[Candidate],
        sources: Sequence[Picture],
        actions: Sequence[str],
        tasks: Sequence[str | None],
    ) -> list[Scored]:
        return score(loaded, Batch(actions, candidates, sources, task=tasks))

    return score_all


def shares_base(base_or_run: str | Path, backbone: UnifiedVLM) -> bool:
    """Whether a base or run stands on the weights of a backbone, so that `backbone=` can be given for it."""
    folder = adapter_folder(Path(base_or_run))
    return _same_base(str(base_or_run) if folder is None else base_of_adapter(folder), backbone.name)


def _open(base_or_run: str | Path, backbone: UnifiedVLM | None, name: str) -> tuple[UnifiedVLM, str | None]:
    folder = adapter_folder(Path(base_or_run))
    if folder is None:
        if backbone is not None and not _same_base(str(base_or_run), backbone.name):
            raise RewindError(f"'{base_or_run}' is no adapter for the given backbone {backbone.name}")
        return backbone or _on_device(load_base(base_or_run)), None
    base = base_of_adapter(folder)
    if backbone is not None and not _same_base(base, backbone.name):
        raise RewindError(f"the adapter in {folder} belongs to {base}, not to {backbone.name}")
    vlm = backbone or _on_device(load_base(base))
    vlm.attach_adapter(folder, name)
    return vlm, name


def _on_device(vlm: UnifiedVLM) -> UnifiedVLM:
    """On the GPU if there is one; `fdm.backbone.model.to(...)` moves it elsewhere."""
    if torch.cuda.is_available():
        vlm.model.to("cuda")
    return vlm


def _same_base(first: str, second: str) -> bool:
    """Whether two names or folders mean one base, however the path is written."""
    return first == second or (Path(first).is_dir() and Path(first).resolve() == Path(second).resolve())
