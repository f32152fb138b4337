"""Rewards, one idea a file. `BUILT_IN` is the whole table; a reward of one's own needs no registration."""

from __future__ import annotations

from typing import Any

from rewards.contract import Batch, Reward, scorers
from rewards.copy_penalty import CopyPenalty
from rewards.ensemble import Ensemble
from rewards.fdm_confidence import FDMConfidence
from rewards.idm_choice import IDMChoice
from rewards.idm_likelihood import IDMLikelihood
from rewards.idm_margin import IDMMargin
from rewards.idm_match import IDMMatch
from rewards.idm_token_f1 import IDMTokenF1
from rewards.idm_yes_no import IDMYesNo
from rewards.judge import Judge
from rewards.keep_unchanged import KeepUnchanged
from rewards.loading import load_rewards
from rewards.scoring import score
from rewards.target_distance import TargetDistance

BUILT_IN: dict[str, type[Any]] = {
    "idm_likelihood": IDMLikelihood,
    "idm_margin": IDMMargin,
    "idm_match": IDMMatch,
    "idm_token_f1": IDMTokenF1,
    "idm_choice": IDMChoice,
    "idm_yes_no": IDMYesNo,
    "ensemble": Ensemble,
    "judge": Judge,
    "keep_unchanged": KeepUnchanged,
    "copy_penalty": CopyPenalty,
    "target_distance": TargetDistance,
    "fdm_confidence": FDMConfidence,
}
NEEDS_IDM = {"idm_likelihood", "idm_margin", "idm_match", "idm_token_f1", "idm_choice", "idm_yes_no", "ensemble"}

__all__ = ["BUILT_IN", "NEEDS_IDM", "Batch", "Reward", "load_rewards", "score", "scorers"]
