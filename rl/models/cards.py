"""What `rewind.json` of a base or an adapter keeps of what its training data told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.actions import ActionBins
from rl.errors import RewindError
from rl.models.fast import FastCodec
from rl.models.known import CARD_FILE
from rl.models.unified import UnifiedVLM


def learned(vlm: UnifiedVLM) -> dict[str, Any]:
    """The ranges of actions that are vectors, and how near two tokens show the same, where there are any."""
    told: dict[str, Any] = {} if vlm.actions is None else {"actions": vlm.actions.card()}
    return told | ({"same_below": vlm.same_below} if vlm.same_below else {})


def take(vlm: UnifiedVLM, card: dict[str, Any], folder: Path) -> None:
    """Let a backbone know what `learned` wrote.

    Raises:
        RewindError: an unknown kind of actions, an inverse model that says words beside a model of vectors, a
            distance that is none.
    """
    near = card.get("same_below", vlm.same_below)
    if not isinstance(near, int | float) or not near >= 0:
        raise RewindError(f"{folder / CARD_FILE} states no distance of codes, but same_below {near!r}")
    vlm.same_below = float(near)
    told = card.get("actions")
    if told is None:
        if card.get("role") == "idm" and vlm.actions is not None:
            raise RewindError(f"the inverse model in {folder} names actions in words, and {vlm.name} takes vectors")
        return
    if not isinstance(told, dict) or told.get("kind") not in ("bins", "fast"):
        raise RewindError(f"{folder / CARD_FILE} states actions of an unknown kind: 'bins' and 'fast' are known")
    vlm.use_actions(ActionBins.of(told), FastCodec.of(told.get("codec") or {}) if told["kind"] == "fast" else None)
