"""Base folders: which exist by name, how one is opened, and the adapters that stand on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rl.errors import RewindError
from rl.models.families.table import FAMILIES
from rl.models.known import SHIPPED, SHIPPED_RUNS
from rl.models.roles import FDM_ADAPTER, IDM_ADAPTER, ForwardDynamics, InverseDynamics, Role
from rl.models.unified import UnifiedVLM
from rl.running.files import read_json
from rl.running.run_folder import CONFIG_FILE

CARD_FILE = "rewind.json"
"""Beside the weights: a base's family and words, an adapter's role."""


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


def load_fdm(base_or_run: str | Path, backbone: UnifiedVLM | None = None) -> ForwardDynamics:
    """A forward dynamics model from a base (by name or folder) or from a run folder, whose adapter names its base.

    Pass `backbone` to put the run's adapter on weights that are already loaded.

    Raises:
        RewindError: no such base or run, one that does not fit the backbone, or a run that trained an inverse model.
    """
    check_role(base_or_run, "fdm")
    return ForwardDynamics(*_open(base_or_run, backbone, FDM_ADAPTER))


def load_idm(
    base_or_run: str | Path, backbone: UnifiedVLM | None = None, adapter: str = IDM_ADAPTER
) -> InverseDynamics:
    """An inverse dynamics model; with `backbone=fdm.backbone` it is a second adapter on the same weights.

    A second inverse model on one backbone needs another name for its `adapter`.

    Raises:
        RewindError: as `load_fdm`; a run that trained a forward model.
    """
    check_role(base_or_run, "idm")
    return InverseDynamics(*_open(base_or_run, backbone, adapter))


def role_of(base_or_run: str | Path) -> Role | None:
    """The role that a run was trained for, or an exported one: what the card beside its weights says, or for older runs
    `run.json`. None for a base, and where nothing says it.
    """
    adapter = adapter_folder(Path(base_or_run))
    folder = adapter or SHIPPED.get(str(base_or_run), Path(base_or_run))
    card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    if card.get("role") in ("fdm", "idm"):
        role: Role = card["role"]
        return role
    for run in (folder, folder.parent) if adapter is not None else ():
        if (run / CONFIG_FILE).is_file():
            return _role_of_run(read_json(run / CONFIG_FILE), run.name)
    return None


def _role_of_run(about: dict[str, Any], name: str) -> Role | None:
    """What a `run.json` without a word on the role means by its script, its stage of the demo and its folder's name."""
    script, config = about.get("script", ""), about.get("config", {})
    if script == "train_idm.py" or (script == "train_fdm.py" and config.get("with_idm") and name == "idm"):
        return "idm"
    if script in ("train_fdm.py", "train_grpo.py", "train_best_of_n.py", "train_dpo.py"):
        return "fdm"
    stage = about.get("stage")
    return None if stage is None else "idm" if str(stage).endswith("idm") else "fdm"


def check_role(base_or_run: str | Path, role: Role) -> None:
    """Raise a `RewindError` if a run was trained for the other role, as far as its folder says."""
    found = role_of(base_or_run)
    if found is not None and found != role:
        kinds = {"fdm": "a forward model (--fdm, load_fdm)", "idm": "an inverse model (--idm, load_idm)"}
        raise RewindError(f"{base_or_run} was trained as {kinds[found]} and is asked for as {kinds[role]}: swap them?")


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
