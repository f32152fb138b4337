"""`rewards` and `trainers` are common names: a user's own folder may hide ours, which matters when ours is needed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import rl

OURS = ("rewards", "trainers")


def need(*names: str) -> None:
    """Make sure that Rewind's own packages of these names are the ones that an import finds, or has found.

    Raises:
        ImportError: another package of that name hides ours, or there is none.
    """
    home = Path(rl.__file__).resolve().parent.parent
    for name in names:
        found = _places(name)
        if not found or Path(found[0]).resolve().parent != home:
            raise ImportError(
                f"another package named '{name}' ({', '.join(found) or 'nowhere'}) hides Rewind's, which is needed "
                "here: rename it, start elsewhere, remove it from PYTHONPATH, or use an environment of its own"
            )


def _places(name: str) -> list[str]:
    """The folders of a package, or the file of a module, that has been imported or would be."""
    module = sys.modules.get(name)
    if module is not None:
        return [str(place) for place in getattr(module, "__path__", None) or [getattr(module, "__file__", None) or ""]]
    spec = find_spec(name)
    if spec is None:
        return []
    return [str(place) for place in spec.submodule_search_locations or [spec.origin or ""]]
