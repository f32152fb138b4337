"""Rewind: RL post-training for world models, with rewards that look back from the outcome to the action."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.api import rerank, rollout
    from rl.errors import RewindError
    from rl.models.opening import load_fdm, load_idm
    from rl.triplets import Candidate, Scored, Triplet
    from rl.worlds import load_world

_PUBLIC = {
    "load_fdm": "rl.models.opening",
    "load_idm": "rl.models.opening",
    "rerank": "rl.api",
    "rollout": "rl.api",
    "load_world": "rl.worlds",
    "Candidate": "rl.triplets",
    "Scored": "rl.triplets",
    "Triplet": "rl.triplets",
    "RewindError": "rl.errors",
}

__all__ = ["Candidate", "RewindError", "Scored", "Triplet", "load_fdm", "load_idm", "load_world", "rerank", "rollout"]


def __getattr__(name: str) -> Any:
    """Import the public API only when it is used, so that `--help` does not wait for torch."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rl' has no attribute '{name}'")
