"""What is known of models without opening one (and without torch): bases and runs that ship, names of linear layers."""

from __future__ import annotations

from pathlib import Path

import rl

_TABLETOP = Path(rl.__file__).parent / "worlds" / "tabletop" / "bases"
SHIPPED = {"tabletop-chameleon": _TABLETOP / "chameleon"}
SHIPPED_RUNS = {"tabletop-chameleon-judge": _TABLETOP / "chameleon-judge"}
BASE_OF_WORLD = {"tabletop": "tabletop-chameleon"}
JUDGES = {"tabletop-chameleon": "tabletop-chameleon-judge"}
"""The IDM that judges what stands on a base: trained on other labels, it neither rewards nor labels."""
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of the decoder stack; the head stays as it is, since both roles share it."""
WHOLE = "model"
"""In a run that trained all weights, the folder of its model, a base by itself."""
CARD_FILE = "rewind.json"
"""What we know of a base, or of an adapter, beside its weights."""
VQ_CONFIG_FILE = "vq_config.json"
"""Of the image tokenizer, in a folder whose `config.json` says nothing of it."""
MAX_ROWS = 512
"""Rows decoded at once unless the caller says otherwise."""


def whole_model(folder: Path) -> Path:
    """The base in a folder: the folder itself, or the model of a run that trained all weights."""
    inner = folder / WHOLE
    return inner if not (folder / "config.json").is_file() and (inner / "config.json").is_file() else folder
