"""The public door: open the two roles from a base or a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rl.errors import RewindError
from rl.images import Picture
from rl.models.bases import adapter_folder, base_of_adapter, load_base
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.search.best_of_n import Reranked
from rl.search.best_of_n import rerank as rerank_candidates
from rl.triplets import Candidate, Scored
from rl.unified import UnifiedVLM

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


def rerank(
    fdm: ForwardDynamics,
    idm: InverseDynamics | None,
    source: Picture,
    action: str,
    num_candidates: int = 8,
    rewards: Sequence[str | Callable[..., Any]] = ("idm_likelihood",),
    *,
    temperature: float = 1.0,
    seed: int = 0,
    task: str | None = None,
    min_score: float | None = None,
    min_lead: float | None = None,
    **sampling: Any,
) -> Reranked:
    """Draw candidates and put the best first (arXiv 2506.06006, inference-time verification).

    Args:
        fdm: draws the candidates.
        idm: given to the rewards that need an inverse model; None if none does.
        source: the picture before the action.
        action: what happens, in words.
        num_candidates: how many are drawn; equal pictures are scored once.
        rewards: names of built-ins, paths 'file.py:function', or callables, each with '=WEIGHT' if it is a text.
        temperature: of the candidates; low ones are all alike.
        seed: same seed, same result.
        task: the task's name, for rewards that treat tasks differently.
        min_score: abstain if the best total is below it.
        min_lead: abstain if the best leads the runner-up by less.
        sampling: `top_k`, `top_p`, `guidance`, as for `ForwardDynamics.sample`.

    Raises:
        RewindError: a reward that cannot be loaded or fails, an empty action, something that is no picture.
    """
    from rewards import Batch, load_rewards, score

    loaded = load_rewards(list(rewards), idm)

    def draw() -> list[Candidate]:
        return fdm.sample(source, action, num_candidates, temperature=temperature, seed=seed, **sampling)

    def judge(candidates: Sequence[Candidate]) -> list[Scored]:
        count = len(candidates)
        return score(loaded, Batch([action] * count, candidates, [source] * count, task=[task] * count))

    return rerank_candidates(draw, judge, min_score=min_score, min_lead=min_lead)


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
