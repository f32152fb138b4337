"""Rewards, one idea a file. `BUILT_IN` is the whole table; a reward of one's own needs no registration."""

from __future__ import annotations

from rewards.contract import Batch, Reward, scorers
from rewards.loading import load_rewards
from rewards.table import BUILT_IN, NEEDS_IDM
from rewards.totals import score

__all__ = ["BUILT_IN", "NEEDS_IDM", "Batch", "Reward", "load_rewards", "score", "scorers"]
