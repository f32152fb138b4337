"""Rewards, one idea a file. `BUILT_IN` is the whole table; a reward of one's own needs no registration."""

from __future__ import annotations

from typing import Any

from rewards.contract import Batch, Reward, score
from rewards.idm_likelihood import IDMLikelihood
from rewards.idm_margin import IDMMargin
from rewards.judge import Judge
from rewards.keep_unchanged import KeepUnchanged
from rewards.loading import load_rewards

BUILT_IN: dict[str, type[Any]] = {
    "idm_likelihood": IDMLikelihood,
    "idm_margin": IDMMargin,
    "judge": Judge,
    "keep_unchanged": KeepUnchanged,
}
NEEDS_IDM = {"idm_likelihood", "idm_margin"}

__all__ = ["BUILT_IN", "NEEDS_IDM", "Batch", "Reward", "load_rewards", "score"]
