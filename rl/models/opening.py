"""Base folders: which exist by name, how one is opened, and the adapters that stand on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rl.errors import RewindError
from rl.models.bases import adapter_folder, base_folder, base_of_adapter, is_base, same_base
from rl.models.families.table import FAMILIES
from rl.models.known import SHIPPED
from rl.models.roles import FDM_ADAPTER, IDM_ADAPTER, ForwardDynamics, InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.running.files import read_json

CARD_FILE = "rewind.json"


def save_base(vlm: UnifiedVLM, folder: Path, card: dict[str, Any]) -> None:
    """Write a base folder; `card` goes into `rewind.json` beside the family and the words it has read."""
    vlm.save(folder)
    words = sorted(vlm.known_words) if vlm.known_words is not None else None
    text = json.dumps({"family": vlm.family, "image_size": vlm.image_size, **card, "known_words": words}, indent=1)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")


def load_base(name_or_folder: str | Path) -> UnifiedVLM:
    """Open a base by its shipped name or from a folder with a transformers checkpoint in safetensors.

    Raises:
        RewindError: no such base, another family, missing weights.
    """
    folder = base_folder(name_or_folder)
    if not is_base(folder):
        raise RewindError(
            f"there is no base '{name_or_folder}': give a folder with config.json and safetensors weights, or one of "
            f"{', '.join(SHIPPED)}"
        )
    config = read_json(folder / "config.json")
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    family = config.get("model_type")
    if family not in FAMILIES or card.get("family", family) != family:
        raise RewindError(
            f"{folder} holds a '{family}' checkpoint; the families that can be opened are {', '.join(FAMILIES)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise RewindError(f"{folder} has no weights in safetensors; other formats are not opened")
    try:
        return FAMILIES[family].load(folder, str(name_or_folder), card.get("known_words"))
    # What transformers and safetensors raise for a damaged or incomplete folder.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewindError(f"{folder} cannot be opened: {' '.join(str(error).split())[:300]}") from error


def load_fdm(
    base_or_run: str | Path, backbone: UnifiedVLM | None = None, *, base: str | Path | None = None
) -> ForwardDynamics:
    """A forward dynamics model from a base (by name or folder) or from a run folder, whose adapter names its base.

    Args:
        base_or_run: a base, or the run folder.
        backbone: put the run's adapter on weights that are already loaded.
        base: the base of a run by hand, by name or folder, where the one that it names has been moved.

    Raises:
        RewindError: no such base or run, an adapter of another base than the backbone, `base` for what is no run.
    """
    return ForwardDynamics(*_open(base_or_run, backbone, FDM_ADAPTER, base))


def load_idm(
    base_or_run: str | Path,
    backbone: UnifiedVLM | None = None,
    adapter: str = IDM_ADAPTER,
    *,
    base: str | Path | None = None,
) -> InverseDynamics:
    """An inverse dynamics model; with `backbone=fdm.backbone` it is a second adapter on the same weights.

    A second inverse model on one backbone needs another name for its `adapter`; the rest is as for `load_fdm`.
    """
    if not isinstance(adapter, str) or not adapter.isidentifier():
        raise RewindError(f"an adapter's name is one word of letters, digits and '_', e.g. 'idm_2', not {adapter!r}")
    return InverseDynamics(*_open(base_or_run, backbone, adapter, base))


def shares_base(base_or_run: str | Path, backbone: UnifiedVLM) -> bool:
    """Whether a base or run stands on the weights of a backbone, so that `backbone=` can be given for it."""
    folder = adapter_folder(base_or_run)
    return same_base(base_or_run if folder is None else base_of_adapter(folder), backbone.name)


def _open(
    base_or_run: str | Path, backbone: UnifiedVLM | None, name: str, base: str | Path | None
) -> tuple[UnifiedVLM, str | None]:
    for given in (base_or_run,) if base is None else (base_or_run, base):
        if not isinstance(given, str | Path):
            raise RewindError(f"a base or run is given by name or path (str or Path), not as a {type(given).__name__}")
    if backbone is not None and not isinstance(backbone, UnifiedVLM):
        raise RewindError(f"backbone= takes a loaded backbone, e.g. fdm.backbone, not a {type(backbone).__name__}")
    folder = adapter_folder(base_or_run)
    if folder is None:
        if base is not None:
            raise RewindError(f"'{base_or_run}' holds no adapter, so it stands on no other base: leave out base=")
        if backbone is not None and not same_base(base_or_run, backbone.name):
            raise RewindError(f"'{base_or_run}' is no adapter for the given backbone {backbone.name}")
        return backbone or _on_device(load_base(base_or_run)), None
    stands_on = base_of_adapter(folder) if base is None else str(base)
    if backbone is not None and not same_base(stands_on, backbone.name):
        raise RewindError(f"the adapter in {folder} belongs to {stands_on}, not to {backbone.name}")
    if backbone is None and base is None and not is_base(stands_on):
        raise RewindError(
            f"the adapter in {folder} stands on the base '{stands_on}', which is not there any more: give its folder "
            "as base= (Python), or write it into adapter_config.json there as base_model_name_or_path"
        )
    vlm = backbone or _on_device(load_base(stands_on))
    vlm.attach_adapter(folder, name)
    return vlm, name


def _on_device(vlm: UnifiedVLM) -> UnifiedVLM:
    """On the GPU if there is one; `fdm.backbone.model.to(...)` moves it elsewhere."""
    if torch.cuda.is_available():
        vlm.model.to("cuda")
    return vlm
