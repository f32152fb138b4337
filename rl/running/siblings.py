"""`rewards` and `trainers` are common names: a user's own folder may hide ours, which matters when ours is needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import rl

OURS = ("rewards", "trainers")


def need(*names: str) -> None:
    """Make sure that Rewind's own packages of these names are the ones that an import finds.

    Raises:
        ImportError: another package of that name hides ours, or there is none.
    """
    home = Path(rl.__file__).resolve().parent.parent
    for name in names:
        spec = find_spec(name)
        found = list(spec.submodule_search_locations or [spec.origin or ""]) if spec is not None else []
        if not found or Path(found[0]).resolve().parent != home:
            raise ImportError(
                f"another package named '{name}' ({', '.join(found) or 'nowhere'}) hides Rewind's, which is needed "
                "here: rename it, start elsewhere, remove it from PYTHONPATH, or use an environment of its own"
            )
