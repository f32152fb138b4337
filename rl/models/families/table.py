"""Every family that can be opened. The first that recognises a checkpoint's `config.json` takes it."""

from __future__ import annotations

from typing import Any

from rl.models.families.chameleon import ChameleonVLM
from rl.models.families.liquid import LiquidVLM
from rl.models.families.lumina import LuminaVLM

Family = type[ChameleonVLM] | type[LiquidVLM]
FAMILIES: dict[str, Family] = {family.family: family for family in (LuminaVLM, ChameleonVLM, LiquidVLM)}


def family_of(config: dict[str, Any], card: dict[str, Any]) -> Family | None:
    """The family of a checkpoint: the one that its card (`rewind.json`) names, if it is of transformers' classes for
    that, or the first that recognises the config; None for none.
    """
    named = card.get("family")
    if named is not None:
        family = FAMILIES.get(named)
        return family if family is not None and family.model_type == config.get("model_type") else None
    return next((family for family in FAMILIES.values() if family.recognises(config)), None)
