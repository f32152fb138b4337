"""The whole table of built-in rewards, by import path: one of your own is loaded the same way and needs no entry.

Beside it, how a reward is written with its weight.
"""

from __future__ import annotations

from rl.errors import RewindError

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


def weight_of(item: str) -> tuple[str, float | None]:
    """A reward's name or path, and its weight if there is one: a number behind the last '='.

    An '=' in the path of a file is none of a weight: 'runs/lr=1/my.py:f' has none, and 'runs/lr=1/my.py:f=2' has 2.

    Raises:
        RewindError: something else than a number behind the name's '='.
    """
    folder, colon, name = item.rpartition(":")
    name, equals, number = name.rpartition("=") if "=" in name else (name, "", "")
    if not equals or (not colon and "/" in number):
        return item, None
    try:
        return f"{folder}{colon}{name}", float(number)
    except ValueError as error:
        raise RewindError(f"the weight in '{item}' is no number: write NAME=0.5") from error
