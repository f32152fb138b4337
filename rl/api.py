"""The public door: open the two roles from a base or a run folder."""

from __future__ import annotations

from pathlib import Path

from rl.errors import RewindError
from rl.models.bases import adapter_folder, base_of_adapter, load_base
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.unified import UnifiedVLM

FDM_ADAPTER, IDM_ADAPTER = "default", "idm"
"""Adapter names on a shared backbone; TRL expects the policy's to be `default`."""


def load_fdm(base_or_run: str | Path, backbone: UnifiedVLM | None = None) -> ForwardDynamics:
    """A forward dynamics model from a base (by name or folder) or from a run folder, whose adapter names its base.

    Pass `backbone` to put the run's adapter on weights that are already loaded.
    """
    return ForwardDynamics(*_open(base_or_run, backbone, FDM_ADAPTER))


def load_idm(base_or_run: str | Path, backbone: UnifiedVLM | None = None) -> InverseDynamics:
    """An inverse dynamics model; with `backbone=fdm.backbone` it is a second adapter on the same weights."""
    return InverseDynamics(*_open(base_or_run, backbone, IDM_ADAPTER))


def shares_base(base_or_run: str | Path, backbone: UnifiedVLM) -> bool:
    """Whether a base or run stands on the weights of a backbone, so that `backbone=` can be given for it."""
    folder = adapter_folder(Path(base_or_run))
    return _same_base(str(base_or_run) if folder is None else base_of_adapter(folder), backbone.name)


def _open(base_or_run: str | Path, backbone: UnifiedVLM | None, name: str) -> tuple[UnifiedVLM, str | None]:
    folder = adapter_folder(Path(base_or_run))
    if folder is None:
        if backbone is not None and not _same_base(str(base_or_run), backbone.name):
            raise RewindError(f"'{base_or_run}' is no adapter for the given backbone {backbone.name}")
        return backbone or load_base(base_or_run), None
    base = base_of_adapter(folder)
    if backbone is not None and not _same_base(base, backbone.name):
        raise RewindError(f"the adapter in {folder} belongs to {base}, not to {backbone.name}")
    vlm = backbone or load_base(base)
    vlm.attach_adapter(folder, name)
    return vlm, name


def _same_base(first: str, second: str) -> bool:
    """Whether two names or folders mean one base, however the path is written."""
    return first == second or (Path(first).is_dir() and Path(first).resolve() == Path(second).resolve())
