"""What `rewind.json` of a base or an adapter keeps of what its training data told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.actions import ActionBins
from rl.errors import RewindError
from rl.models.fast import FastCodec
from rl.models.known import CARD_FILE
from rl.models.unified import UnifiedVLM

OTHER = "the one on the same base"
TWO_KINDS = "{} takes {} as actions and {} {}: train both roles on the same actions (docs/guide/data.md)"


def learned(vlm: UnifiedVLM) -> dict[str, Any]:
    """The ranges of actions that are vectors, and how near two tokens show the same, where there are any."""
    told: dict[str, Any] = {} if vlm.actions is None else {"actions": vlm.actions.card()}
    return told | ({"same_below": vlm.same_below} if vlm.same_below else {})


def check_same_kind(fdm: UnifiedVLM, idm: UnifiedVLM, name: str | Path) -> None:
    """Raise a `RewindError` if one of two backbones takes vectors as actions and the other words; `name`: the IDM's."""
    if (fdm.actions is None) != (idm.actions is None):
        kinds = ("words", "vectors") if idm.actions is None else ("vectors", "words")
        raise RewindError(TWO_KINDS.format(f"the inverse model {name}", kinds[0], fdm.name, kinds[1]))


def take(vlm: UnifiedVLM, card: dict[str, Any], folder: Path, adapter: bool = False) -> None:
    """Let a backbone know what `learned` wrote in its own folder, or in that of an adapter that is put on it.

    Raises:
        RewindError: an unknown kind of actions, a model trained on words beside one of vectors, a distance that is
            none.
    """
    near = card.get("same_below", vlm.same_below)
    if not isinstance(near, int | float) or not near >= 0:
        raise RewindError(f"{folder / CARD_FILE} states no distance of codes, but same_below {near!r}")
    vlm.same_below = float(near)
    told = card.get("actions")
    trained = adapter and card.get("role") in ("fdm", "idm")  # what stands below may have learned words first
    if told is None:
        if trained and vlm.actions is not None:
            raise RewindError(TWO_KINDS.format(f"the model in {folder}", "words", OTHER, "vectors"))
        vlm.trained_on_words |= trained
        return
    if not isinstance(told, dict) or told.get("kind") not in ("bins", "fast"):
        raise RewindError(f"{folder / CARD_FILE} states actions of an unknown kind: 'bins' and 'fast' are known")
    if trained and vlm.trained_on_words:
        raise RewindError(TWO_KINDS.format(f"the model in {folder}", "vectors", OTHER, "words"))
    vlm.use_actions(ActionBins.of(told), FastCodec.of(told.get("codec") or {}) if told["kind"] == "fast" else None)
