"""Where bases and adapters lie: names that ship, folders, and the base that an adapter names (without torch)."""

from __future__ import annotations

import os
from pathlib import Path

from rl.errors import RewindError
from rl.models.hub import is_hub_id
from rl.models.known import SHIPPED, SHIPPED_RUNS, whole_model
from rl.paths import expanded
from rl.running.files import read_json


def base_folder(base: str | Path) -> Path:
    """The folder of a base, by its shipped name, its path or that of a run that trained all weights."""
    return SHIPPED.get(str(base)) or whole_model(expanded(base))


def is_base(base: str | Path) -> bool:
    """Whether there is a base of that name or in that folder; a Hub id is taken for one, and not asked for."""
    return (base_folder(base) / "config.json").is_file() or is_hub_id(base)


def same_base(first: str | Path, second: str | Path) -> bool:
    """Whether two names or folders mean one base, however the path is written."""
    if str(first) == str(second):
        return True
    return base_folder(first).is_dir() and base_folder(first).resolve() == base_folder(second).resolve()


def lasting_name(base: str, adapter: Path | None = None) -> str:
    """A base's name as a run keeps it, so that the run opens from any working folder.

    A shipped name stays; a folder becomes an absolute path or, in the config of an `adapter` whose run lies beside the
    base, a path from there, so that both can be moved together.
    """
    if base in SHIPPED or not Path(base).is_dir():
        return base
    if adapter is not None:
        here, there = adapter.resolve(), Path(base).resolve()  # a '..' leads where the links lead
        if there.parent == here.parent.parent:
            return os.path.relpath(there, here)
    return str(Path(base).absolute())


def adapter_folder(run: str | Path) -> Path | None:
    """The LoRA adapter of a run folder (`RUN/adapter`) or the folder itself if it is one; None for anything else."""
    run = SHIPPED_RUNS.get(str(run), expanded(run))
    for folder in (run / "adapter", run):
        if (folder / "adapter_config.json").is_file():
            return folder
    return None


def base_of_adapter(folder: Path) -> str:
    """The base that an adapter names. A relative path is taken from the adapter, or else from the working folder.

    Raises:
        RewindError: it names none.
    """
    base = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if not base:
        raise RewindError(f"{folder}/adapter_config.json does not name its base (base_model_name_or_path)")
    beside = folder / base
    return str(beside.resolve()) if base not in SHIPPED and not Path(base).is_absolute() and is_base(beside) else base
