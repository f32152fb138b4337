"""The whole table of built-in rewards, by import path: one of your own is loaded the same way and needs no entry."""

from __future__ import annotations

BUILT_IN = {
    "idm_likelihood": "rewards.idm_likelihood:IDMLikelihood",
    "idm_margin": "rewards.idm_margin:IDMMargin",
    "idm_match": "rewards.idm_match:IDMMatch",
    "idm_token_f1": "rewards.idm_token_f1:IDMTokenF1",
    "idm_choice": "rewards.idm_choice:IDMChoice",
    "idm_yes_no": "rewards.idm_yes_no:IDMYesNo",
    "ensemble": "rewards.ensemble:Ensemble",
    "judge": "rewards.judge:Judge",
    "keep_unchanged": "rewards.keep_unchanged:KeepUnchanged",
    "copy_penalty": "rewards.copy_penalty:CopyPenalty",
    "target_distance": "rewards.target_distance:TargetDistance",
    "fdm_confidence": "rewards.fdm_confidence:FDMConfidence",
    "fdm_likelihood": "rewards.fdm_likelihood:FDMLikelihood",
    "fdm_margin": "rewards.fdm_margin:FDMMargin",
}
NEEDS_IDM = {"idm_likelihood", "idm_margin", "idm_match", "idm_token_f1", "idm_choice", "idm_yes_no", "ensemble"}
SENTENCES = {"fdm_likelihood", "fdm_margin"}
"""Those that score what an inverse model says (`train_grpo.py --role idm`); all others score predicted pictures."""
