"""An adapter run as a plain base folder: the adapter's product added to the weights, nothing of peft left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.models.saving import save_base
from rl.models.unified import UnifiedVLM


def save_merged(vlm: UnifiedVLM, adapter: str | None, folder: Path, card: dict[str, Any]) -> None:
    """Write W + BA of every layer (arXiv 2106.09685, section 4.1) as a folder that transformers' own classes open.

    The backbone itself holds the merged weights afterwards, and no adapter. In half precision the sum is rounded, so
    log-probabilities differ a little from those of the run.

    Args:
        vlm: the backbone.
        adapter: the adapter that is merged; others on the same backbone are dropped.
        folder: the base folder to write.
        card: goes into `rewind.json`, e.g. which run was exported.

    Raises:
        RewindError: there is no such adapter.
    """
    model: Any = vlm.model
    if adapter is None or adapter not in getattr(model, "peft_config", {}):
        raise RewindError(f"{vlm.name} has no adapter to merge: only runs that trained one can be exported")
    vlm.model = model.merge_and_unload(safe_merge=True, adapter_names=[adapter])
    save_base(vlm, folder, card)
