"""What the weights of models are that a run asks and does not train: a run that goes on has to find the same ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME

from rl.errors import RewindError
from rl.models.bases import adapter_folder, base_folder
from rl.models.fingerprint import fingerprint
from rl.models.hub import folder_of, is_hub_id
from rl.running.resumption import ASKED


def weights_for_resume(**models: str | Path | None) -> dict[str, str]:
    """For the config of a run that can be resumed: a digest of each model's adapter, or of a model without one its
    fingerprint, by its argument's name and `_weights`. What is not given, or cannot be opened, has none.
    """
    found = {}
    for name, model in models.items():
        assert f"{name}_weights" in ASKED
        digest = None if model is None else _digest(model)
        if digest is not None:
            found[f"{name}_weights"] = digest
    return found


def _digest(model: str | Path) -> str | None:
    try:
        folder = folder_of(model) if is_hub_id(model) else model
        adapter = adapter_folder(folder)
        if adapter is None:
            told = fingerprint(base_folder(folder))
            return None if told is None else told.sha256[:16]
        weights = adapter / SAFETENSORS_WEIGHTS_NAME
        return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    except (OSError, RewindError):
        return None  # whoever opens it says it better
