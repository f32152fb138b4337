"""An inverse model that watches: on the policy's backbone where that is its base, and in nothing that is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.models.bases import adapter_folder
from rl.models.hub import folder_of, is_hub_id
from rl.models.known import CARD_FILE
from rl.models.opening import load_idm_beside
from rl.models.roles import JUDGE_ADAPTER, InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.running.files import read_json


def load_judge(base_or_run: str | Path, vlm: UnifiedVLM, **opening: Any) -> InverseDynamics:
    """The inverse model of `--judge_idm`: a frozen adapter of its own on the policy's base, or a model of its own.

    It brings nothing that the policy is judged by otherwise: not how near two tokens show the same, nor another way to
    write actions, with which it is opened by itself.
    """
    near = vlm.same_below
    judge = load_idm_beside(
        base_or_run, vlm if _writes_actions_alike(base_or_run, vlm) else None, JUDGE_ADAPTER, **opening
    )
    vlm.same_below = near
    return judge


def _writes_actions_alike(base_or_run: str | Path, vlm: UnifiedVLM) -> bool:
    folder = adapter_folder(folder_of(base_or_run) if is_hub_id(base_or_run) else base_or_run)
    if folder is None:
        return True
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    ours = None if vlm.actions is None else json.loads(json.dumps(vlm.actions.card()))  # with lists for tuples
    return bool(card.get("actions") == ours)
