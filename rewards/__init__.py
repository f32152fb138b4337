"""Rewards, one idea a file. `BUILT_IN` is the whole table; a reward of one's own needs no registration."""

from __future__ import annotations

from pathlib import Path

import rl

# `rl` is a common name: say so instead of failing on a missing module somewhere (as `trainers` does).
_found = getattr(rl, "__file__", None)
if _found is None or Path(_found).resolve().parent.parent != Path(__file__).resolve().parent.parent:
    raise ImportError(
        f"another package named 'rl' ({_found or list(getattr(rl, '__path__', []))}) hides Rewind's: uninstall it, "
        "remove it from PYTHONPATH, or use an environment of its own"
    )

from rewards.contract import Batch, Reward, scorers  # noqa: E402
from rewards.loading import load_rewards  # noqa: E402
from rewards.table import BUILT_IN, NEEDS_IDM  # noqa: E402
from rewards.totals import score  # noqa: E402

__all__ = ["BUILT_IN", "NEEDS_IDM", "Batch", "Reward", "load_rewards", "score", "scorers"]
