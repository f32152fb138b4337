"""Every family that can be opened, by the `model_type` of its `config.json`."""

from __future__ import annotations

from rl.models.families.chameleon import ChameleonVLM

FAMILIES: dict[str, type[ChameleonVLM]] = {"chameleon": ChameleonVLM}
