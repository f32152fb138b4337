"""Base folders: which exist by name, how one is opened, and the adapters that stand on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import rl
from rl.errors import RewindError
from rl.models.chameleon import ChameleonVLM
from rl.unified import UnifiedVLM

FAMILIES: dict[str, type[ChameleonVLM]] = {"chameleon": ChameleonVLM}
_TABLETOP = Path(rl.__file__).parent / "worlds" / "tabletop" / "bases"
SHIPPED = {"tabletop-chameleon": _TABLETOP / "chameleon"}
SHIPPED_RUNS = {"tabletop-chameleon-judge": _TABLETOP / "chameleon-judge"}
BASE_OF_WORLD = {"tabletop": "tabletop-chameleon"}
JUDGES = {"tabletop-chameleon": "tabletop-chameleon-judge"}
"""The IDM that judges what stands on a base: trained on other labels, it neither rewards nor labels."""
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
    folder = SHIPPED.get(str(name_or_folder), Path(name_or_folder))
    if not (folder / "config.json").is_file():
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewindError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise RewindError(f"{path} must hold a JSON object")
    return found
