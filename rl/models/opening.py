"""Base folders: which exist by name, how one is opened, and the adapters that stand on them."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rl.errors import RewindError
from rl.models.families.table import family_of, of_no_family
from rl.models.grammar import Template
from rl.models.hub import folder_of
from rl.models.known import SHIPPED, SHIPPED_RUNS
from rl.models.roles import FDM_ADAPTER, IDM_ADAPTER, ForwardDynamics, InverseDynamics
from rl.models.settings import Settings
from rl.models.unified import UnifiedVLM
from rl.models.vq_files import DECODER_FILE
from rl.running.files import read_json

logger = logging.getLogger("rl")
CARD_FILE = "rewind.json"


def save_base(vlm: UnifiedVLM, folder: Path, card: dict[str, Any]) -> None:
    """Write a base folder; `card` goes into `rewind.json` beside the family and the words it has read."""
    vlm.save(folder)
    words = sorted(vlm.known_words) if vlm.known_words is not None else None
    told = {"family": vlm.family, "image_size": vlm.image_size, **card, "known_words": words}
    if vlm.template != type(vlm).template:
        told["template"] = asdict(vlm.template)
    text = json.dumps(told, indent=1)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")


def load_base(name_or_folder: str | Path, settings: Settings | None = None, vq: str | Path | None = None) -> UnifiedVLM:
    """Open a base by its shipped name, from a folder with a transformers checkpoint in safetensors, or from the Hub.

    Args:
        name_or_folder: a shipped name, a folder, or `owner/name` or `owner/name@revision` on the Hub.
        settings: precision, attention, quantisation and device.
        vq: a folder or Hub id with the weights of the VQ image tokenizer, where the checkpoint itself lacks a part.

    Raises:
        RewindError: no such base, another family, missing weights.
    """
    folder = folder_of(name_or_folder)
    if not (folder / "config.json").is_file():
        raise RewindError(
            f"there is no base '{name_or_folder}': give a folder with config.json and safetensors weights, a Hub "
            f"id, or one of {', '.join(SHIPPED)}"
        )
    config = read_json(folder / "config.json")
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    family = family_of(config, card)
    if family is None:
        raise RewindError(f"{folder} holds {of_no_family(config, card)}")
    if not any(file.name != DECODER_FILE for file in folder.glob("*.safetensors")):
        raise RewindError(f"{folder} has no weights in safetensors; other formats are not opened: scripts/convert.py")
    settings, vq_folder = settings or Settings(), None if vq is None else folder_of(vq)
    settings = replace(settings, image_size=settings.image_size or card.get("image_size"))
    try:
        vlm = family.load(folder, str(name_or_folder), card.get("known_words"), settings, vq_folder)
    # What transformers and safetensors raise for a damaged or incomplete folder.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewindError(f"{folder} cannot be opened: {' '.join(str(error).split())[:300]}") from error
    if "template" in card:
        vlm.template = Template.of(card["template"])
    if not vlm.can_draw:
        logger.warning("%s has no VQ decoder: all works but drawing pictures, for which --vq names one", name_or_folder)
    return vlm


def adapter_folder(run: Path) -> Path | None:
    """The LoRA adapter of a run folder (`RUN/adapter`) or the folder itself if it is one; None for anything else."""
    run = SHIPPED_RUNS.get(str(run), run)
    for folder in (run / "adapter", run):
        if (folder / "adapter_config.json").is_file():
            return folder
    return None


def base_of_adapter(folder: Path) -> str:
    """The base that an adapter names."""
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise RewindError(f"{folder}/adapter_config.json does not name its base (base_model_name_or_path)")
    return str(base)


def load_fdm(base_or_run: str | Path, backbone: UnifiedVLM | None = None) -> ForwardDynamics:
    """A forward dynamics model from a base (by name or folder) or from a run folder, whose adapter names its base.

    Pass `backbone` to put the run's adapter on weights that are already loaded.
    """
    return ForwardDynamics(*_open(base_or_run, backbone, FDM_ADAPTER))


def load_idm(
    base_or_run: str | Path, backbone: UnifiedVLM | None = None, adapter: str = IDM_ADAPTER
) -> InverseDynamics:
    """An inverse dynamics model; with `backbone=fdm.backbone` it is a second adapter on the same weights.

    A second inverse model on one backbone needs another name for its `adapter`.
    """
    return InverseDynamics(*_open(base_or_run, backbone, adapter))


def shares_base(base_or_run: str | Path, backbone: UnifiedVLM) -> bool:
    """Whether a base or run stands on the weights of a backbone, so that `backbone=` can be given for it."""
    folder = adapter_folder(Path(base_or_run))
    return _same_base(str(base_or_run) if folder is None else base_of_adapter(folder), backbone.name)


def _open(base_or_run: str | Path, backbone: UnifiedVLM | None, name: str) -> tuple[UnifiedVLM, str | None]:
    folder = adapter_folder(Path(base_or_run))
    if folder is None:
        if backbone is not None and not _same_base(str(base_or_run), backbone.name):
            raise RewindError(f"'{base_or_run}' is no adapter for the given backbone {backbone.name}")
        return backbone or _on_device(load_base(base_or_run)), None
    base = base_of_adapter(folder)
    if backbone is not None and not _same_base(base, backbone.name):
        raise RewindError(f"the adapter in {folder} belongs to {base}, not to {backbone.name}")
    vlm = backbone or _on_device(load_base(base))
    vlm.attach_adapter(folder, name)
    return vlm, name


def _on_device(vlm: UnifiedVLM) -> UnifiedVLM:
    """On the GPU if there is one; `fdm.backbone.model.to(...)` moves it elsewhere."""
    if torch.cuda.is_available():
        vlm.model.to("cuda")
    return vlm


def _same_base(first: str, second: str) -> bool:
    """Whether two names or folders mean one base, however the path is written."""
    return first == second or (Path(first).is_dir() and Path(first).resolve() == Path(second).resolve())
