"""Every family that can be opened. The first that recognises a checkpoint's `config.json` takes it."""

from __future__ import annotations

from typing import Any

from rl.models.families.chameleon import ChameleonVLM
from rl.models.families.emu3 import Emu3VLM
from rl.models.families.liquid import VOCABULARY, LiquidVLM
from rl.models.families.lumina import LuminaVLM
from rl.models.families.univla import UniVLM

Family = type[ChameleonVLM] | type[LiquidVLM] | type[Emu3VLM]
_KNOWN = (LuminaVLM, ChameleonVLM, LiquidVLM, UniVLM, Emu3VLM)
FAMILIES: dict[str, Family] = {family.family: family for family in _KNOWN}


def family_of(config: dict[str, Any], card: dict[str, Any]) -> Family | None:
    """The family of a checkpoint: the one that its card (`rewind.json`) names, if it is of transformers' classes for
    that, or the first that recognises the config; None for none.
    """
    named = card.get("family")
    if named is not None:
        family = FAMILIES.get(named)
        return family if family is not None and family.model_type == config.get("model_type") else None
    return next((family for family in FAMILIES.values() if family.recognises(config)), None)


def of_no_family(config: dict[str, Any], card: dict[str, Any]) -> str:
    """What a checkpoint is that no family takes, and what could be opened instead: the end of a sentence."""
    kind, named = config.get("model_type"), card.get("family")
    known = f"the families that can be opened are {', '.join(sorted(FAMILIES))}"
    if named is not None:
        return f"a '{kind}' checkpoint of which rewind.json says '{named}'; {known}"
    if kind == "gemma":
        words = config.get("vocab_size")
        return f"a Gemma with {words} ids; of Gemma's kind Liquid alone can be opened, which has {VOCABULARY}"
    if kind == "Emu3":
        return (
            f"a model of Emu3's kind with {config.get('vocab_size')} ids, whose code is not run (Emu3.5 is one): of "
            "that kind Emu3 and UniVLA can be opened, which have 184622"
        )
    if kind == "emu3":
        return "an Emu3 checkpoint whose config.json lacks its vocabulary_map: fetch the whole repository again"
    return f"a '{kind}' checkpoint; {known}"
