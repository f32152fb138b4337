"""What a run was trained for, as its folder says: a forward model is not opened as an inverse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rl.errors import RewindError
from rl.models.bases import adapter_folder, base_folder
from rl.models.known import CARD_FILE
from rl.running.files import read_json
from rl.running.run_folder import CONFIG_FILE

Kind = Literal["fdm", "idm", "proposer"]
"""A role, or what proposes actions (`rl.models.proposer`)."""
KINDS: dict[Kind, str] = {
    "fdm": "a forward model (--fdm, load_fdm)",
    "idm": "an inverse model (--idm, load_idm)",
    "proposer": "a proposer of actions (--proposer, load_proposer)",
}


def role_of(base_or_run: str | Path) -> Kind | None:
    """The role that a run was trained for, or an exported one: what the card beside its weights says, or for older runs
    `run.json`. None for a base, and where nothing says it.
    """
    adapter = adapter_folder(base_or_run)
    folder = adapter or base_folder(base_or_run)
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    if card.get("role") in KINDS:
        kind: Kind = card["role"]
        return kind
    for run in (folder, folder.parent) if adapter is not None else ():
        if (run / CONFIG_FILE).is_file():
            return _role_of_run(read_json(run / CONFIG_FILE), run.name)
    return None


def _role_of_run(about: dict[str, Any], name: str) -> Kind | None:
    """What a `run.json` without a word on the role means by its script, its stage of the demo and its folder's name."""
    script, config = about.get("script", ""), about.get("config", {})
    if script == "train_idm.py" and config.get("propose"):
        return "proposer"
    if script == "train_idm.py" or (script == "train_fdm.py" and config.get("with_idm") and name == "idm"):
        return "idm"
    if script == "train_grpo.py" and config.get("role") == "idm":
        return "idm"
    if script in ("train_fdm.py", "train_grpo.py", "train_best_of_n.py", "train_dpo.py"):
        return "fdm"
    stage = about.get("stage")
    return None if stage is None else "idm" if str(stage).endswith("idm") else "fdm"


def check_role(base_or_run: str | Path, kind: Kind) -> None:
    """Raise a `RewindError` if a run was trained for another role, as far as its folder says."""
    found = role_of(base_or_run)
    if found is not None and found != kind:
        raise RewindError(f"{base_or_run} was trained as {KINDS[found]} and is asked for as {KINDS[kind]}: swap them?")
