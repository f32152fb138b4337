"""Bases written as folders that `rl.models.opening` opens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl.models.cards import learned
from rl.models.known import CARD_FILE
from rl.models.unified import UnifiedVLM


def save_base(vlm: UnifiedVLM, folder: Path, card: dict[str, Any], max_shard_size: int | str = "50GB") -> None:
    """Write a base folder; `card` goes into `rewind.json` beside the family and the words it has read."""
    vlm.save(folder, max_shard_size)
    words = sorted(vlm.known_words) if vlm.known_words is not None else None
    told = {"family": vlm.family, "image_size": vlm.image_size, **card, "known_words": words}
    told |= {"template": asdict(vlm.template)} if vlm.template != type(vlm).template else {}
    write_card(folder, told | learned(vlm))


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write `rewind.json`: family, picture size, where the base comes from, the words it has read."""
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
