"""Rewind: RL post-training for world models, with rewards that look back from the outcome to the action."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.api import load_fdm, load_idm, rerank, rollout
    from rl.errors import RewindError
    from rl.triplets import Candidate, Scored, Triplet
    from rl.worlds import load_world

_PUBLIC = {
    "load_fdm": "rl.api",
    "load_idm": "rl.api",
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


def _check_siblings() -> None:
    """`rewards` and `trainers` are common names: say so if another distribution's package hides ours."""
    for name in ("rewards", "trainers"):
        spec = find_spec(name)
        found = list(spec.submodule_search_locations or []) if spec is not None else []
        if not found or Path(found[0]).parent != Path(__file__).parent.parent:
            raise ImportError(
                f"another package named '{name}' ({', '.join(found) or 'nowhere'}) hides Rewind's: uninstall it, "
                "remove it from PYTHONPATH, or use an environment of its own"
            )


_check_siblings()
