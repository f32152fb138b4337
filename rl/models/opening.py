"""Base folders: which exist by name, how one is opened, and the adapters that stand on them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from rl.checks import check_whole
from rl.errors import RewindError
from rl.models.adapters import base_told, both_bases, stands_on, vq_told
from rl.models.bases import adapter_folder, base_of_adapter, is_base, lasting_name, same_base
from rl.models.cards import check_same_kind, take
from rl.models.compiling import compiled_step
from rl.models.families import meta_chameleon
from rl.models.families.table import family_of, of_no_family
from rl.models.fingerprint import fingerprint
from rl.models.grammar import Template
from rl.models.hub import folder_of, is_hub_id
from rl.models.known import CARD_FILE, SHIPPED
from rl.models.roles import FDM_ADAPTER, IDM_ADAPTER, ForwardDynamics, InverseDynamics
from rl.models.run_role import Kind, check_role
from rl.models.settings import Settings
from rl.models.unified import UnifiedVLM
from rl.models.vq_files import DECODER_FILE
from rl.running.files import partial, read_json

logger = logging.getLogger("rl")
RoleT = TypeVar("RoleT", bound=ForwardDynamics | InverseDynamics)


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
    if folder.name.endswith(partial(Path("x")).suffix):
        raise RewindError(f"{folder} is what a conversion that was cut off has left: convert again")
    if meta_chameleon.is_meta(folder):
        raise RewindError(
            f"{name_or_folder} is in Meta's own layout: convert it once, python scripts/convert.py --from "
            f"{name_or_folder} --output BASE, and open BASE"
        )
    if adapter_folder(folder) is not None:
        raise RewindError(
            f"{name_or_folder} is a run and no base: give the base that it stands on, or merge it first (export.py)"
        )
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
    asked = settings.picture_size
    settings = replace(settings, image_size=settings.image_size or card.get("image_size"))
    try:
        vlm = family.load(folder, str(name_or_folder), card.get("known_words"), settings, vq_folder)
    # What transformers and safetensors raise for a damaged or incomplete folder, or for a package that is not there.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise RewindError(f"{folder} cannot be opened: {' '.join(str(error).split())[:300]}") from error
    settings.place(vlm.model)
    if settings.compile:
        vlm.step = compiled_step(vlm.transformer(), vlm.device, vlm.name)
    if vlm.head_weight().is_meta:
        raise RewindError(
            f"the head of {name_or_folder} is read as a matrix: give it a device in device_map, not the disk"
        )
    vlm.fingerprint, vlm.asked_size = fingerprint(folder), asked.written if asked else None
    vlm.asked_vq = None if vq is None else lasting_name(str(vq))
    if "template" in card:
        vlm.template = Template.of(card["template"])
    take(vlm, card, folder)
    if not vlm.can_draw:
        logger.warning("%s has no VQ decoder: all works but drawing pictures, for which --vq names one", name_or_folder)
    return vlm


def load_fdm(
    base_or_run: str | Path,
    backbone: UnifiedVLM | None = None,
    adapter: str = FDM_ADAPTER,
    *,
    base: str | Path | None = None,
    vq: str | Path | None = None,
    max_rows: int | None = None,
    **settings: Any,
) -> ForwardDynamics:
    """A forward dynamics model from a base (by name, folder or Hub id) or from a run, whose adapter names its base.

    Args:
        base_or_run: a base, or the run: a folder, or the Hub id of an adapter.
        backbone: put the run's adapter on weights that are already loaded.
        adapter: its name there; a second model of a role on one backbone needs another one.
        base: the base of a run by hand, by name or folder, where the one that it names has been moved.
        vq: a folder or Hub id with the weights of the VQ image tokenizer, where the checkpoint lacks a part.
        max_rows: the most rows drawn, scored, encoded or decoded at once; None for as many as fit into memory.
        settings: `dtype`, `attn_implementation`, `quantization`, `device`, `compile`, ..., as in `rl.models.settings`.

    Raises:
        RewindError: no such base or run, an adapter of another base than the backbone, `base` for what is no run,
            settings for a backbone that is loaded already, a run that trained an inverse model.
    """
    how: dict[str, Any] = {"base": base, "vq": vq, "max_rows": max_rows, **settings}
    made = load_as(ForwardDynamics, "fdm", base_or_run, backbone, adapter, **how)
    made.run = str(_local(base_or_run))
    return made


def load_idm(
    base_or_run: str | Path,
    backbone: UnifiedVLM | None = None,
    adapter: str = IDM_ADAPTER,
    *,
    base: str | Path | None = None,
    vq: str | Path | None = None,
    max_rows: int | None = None,
    **settings: Any,
) -> InverseDynamics:
    """An inverse dynamics model, with the arguments of `load_fdm`; with `backbone=fdm.backbone` it is a second adapter
    on the same weights.
    """
    how: dict[str, Any] = {"base": base, "vq": vq, "max_rows": max_rows, **settings}
    return load_as(InverseDynamics, "idm", base_or_run, backbone, adapter, **how)


def load_as(
    made: type[RoleT], kind: Kind, base_or_run: str | Path, backbone: UnifiedVLM | None, adapter: str, **how: Any
) -> RoleT:
    """A model of a kind; `how` are the named arguments of `load_fdm`."""
    base, vq, max_rows = (how.pop(name, None) for name in ("base", "vq", "max_rows"))
    check_role(_local(base_or_run), kind)
    return _bounded(made(*_open(base_or_run, backbone, adapter, base, vq, _settings(how))), max_rows, backbone)


def _bounded(role: RoleT, max_rows: int | None, backbone: UnifiedVLM | None) -> RoleT:
    """The role with its `max_rows`, which is its backbone's too where that was opened for it."""
    if max_rows is not None:
        check_whole("max_rows", max_rows, least=1)
        role.max_rows = max_rows
        if backbone is None:
            role.backbone.max_rows = max_rows
    return role


def shares_base(base_or_run: str | Path, backbone: UnifiedVLM) -> bool:
    """Whether a base or run stands on the weights of a backbone, so that `backbone=` can be given for it."""
    folder = adapter_folder(_local(base_or_run))
    if folder is None:
        return same_base(base_or_run, backbone.name)
    return stands_on(folder, base_of_adapter(folder), backbone)


def load_idm_beside(
    base_or_run: str | Path, vlm: UnifiedVLM | None, adapter: str = IDM_ADAPTER, **opening: Any
) -> InverseDynamics:
    """An inverse model on the weights of a backbone if it stands on the same base, else opened by itself.

    `adapter` is its name on the backbone; `opening` is what `load_idm` takes beside the name, as it was given for the
    forward model. An inverse model of another base takes its `base` and `vq` only where it does not open without them.

    Raises:
        RewindError: what `load_idm` raises, or one of the two takes vectors as actions and the other words.
    """
    return _beside(load_idm, base_or_run, vlm, adapter, opening)


def load_fdm_beside(base_or_run: str | Path, vlm: UnifiedVLM | None, adapter: str, **opening: Any) -> ForwardDynamics:
    """The same for a forward model."""
    return _beside(load_fdm, base_or_run, vlm, adapter, opening)


def _beside(
    load: Callable[..., RoleT], base_or_run: str | Path, vlm: UnifiedVLM | None, adapter: str, opening: dict[str, Any]
) -> RoleT:
    base = opening.get("base")
    run = adapter_folder(_local(base_or_run))
    if vlm is not None and (
        shares_base(base_or_run, vlm) if base is None or run is None else stands_on(run, base, vlm)
    ):
        return load(base_or_run, vlm, adapter, base=None if run is None else base, max_rows=opening.get("max_rows"))
    try:
        role = load(base_or_run, **{name: value for name, value in opening.items() if name not in ("base", "vq")})
    except RewindError:
        if base is None and "vq" not in opening:
            raise
        role = load(base_or_run, **opening)
    if vlm is not None:
        check_same_kind(vlm, role.backbone, base_or_run)
    return role


def _settings(given: dict[str, Any]) -> Settings:
    unknown = sorted(set(given) - {field.name for field in fields(Settings)})
    if unknown:
        known = ", ".join(field.name for field in fields(Settings))
        raise RewindError(f"a model is opened without '{unknown[0]}': there are {known}")
    return Settings(**given)


def _check_name(given: object) -> None:
    if not isinstance(given, str | Path):
        raise RewindError(f"a base or run is given by name or path (str or Path), not as a {type(given).__name__}")


def _local(base_or_run: str | Path) -> str | Path:
    """What a name stands for on this machine, where an adapter may lie; a Hub id is fetched."""
    _check_name(base_or_run)
    return folder_of(base_or_run) if is_hub_id(base_or_run) else base_or_run


def _open(
    base_or_run: str | Path,
    backbone: UnifiedVLM | None,
    name: str,
    base: str | Path | None,
    vq: str | Path | None,
    settings: Settings,
) -> tuple[UnifiedVLM, str | None]:
    if not isinstance(name, str) or not name.isidentifier():
        raise RewindError(f"an adapter's name is one word of letters, digits and '_', e.g. 'idm_2', not {name!r}")
    if base is not None:
        _check_name(base)
    if backbone is not None and not isinstance(backbone, UnifiedVLM):
        raise RewindError(f"backbone= takes a loaded backbone, e.g. fdm.backbone, not a {type(backbone).__name__}")
    if backbone is not None and (vq is not None or settings.changes_weights):
        raise RewindError("the backbone is loaded already: say how to open it where that is done")
    folder = adapter_folder(_local(base_or_run))
    if folder is None:
        if base is not None:
            raise RewindError(f"'{base_or_run}' holds no adapter, so it stands on no other base: leave out base=")
        if backbone is not None and not same_base(base_or_run, backbone.name):
            raise RewindError(f"'{base_or_run}' is no adapter for the given backbone {backbone.name}")
        return backbone or load_base(base_or_run, settings, vq), None
    base_named = base_of_adapter(folder) if base is None else str(base)
    if backbone is not None and not stands_on(folder, base_named, backbone):
        raise RewindError(f"the adapter in {folder} belongs to {both_bases(folder, base_named, backbone)}")
    if backbone is None and base is None and not is_base(base_named):
        raise RewindError(
            f"the adapter in {folder} stands on the base '{base_named}', which is not there any more: give its folder "
            "as base= (Python), or write it into adapter_config.json there as base_model_name_or_path"
        )
    vlm = backbone or _base_of(folder, base_named, settings, vq)
    take(vlm, read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}, folder, adapter=True)
    vlm.attach_adapter(folder, name)
    return vlm, name


def _base_of(adapter: Path, base: str, settings: Settings, vq: str | Path | None) -> UnifiedVLM:
    """The base that an adapter stands on, by the name that it keeps with the image tokenizer that was named then.

    Raises:
        RewindError: other weights, or an image tokenizer that is gone.
    """
    told, size = base_told(adapter)
    found = fingerprint(folder_of(base)) if told is not None else None
    if found is not None and found != told:
        raise RewindError(
            f"the adapter in {adapter} was trained on another base than {base} is now: on {base_of_adapter(adapter)} "
            f"({told}), and this one has {found}; give the one that it was trained on as base= (--base)"
        )
    if vq is None and same_base(base, base_of_adapter(adapter)):
        vq = vq_told(adapter)
        if vq is not None and not (Path(vq).exists() or is_hub_id(vq)):
            raise RewindError(
                f"the adapter in {adapter} was trained with the image tokenizer in {vq}, which is not there any more: "
                "say where it is, vq= (--vq)"
            )
    return load_base(base, replace(settings, image_size=settings.image_size or size), vq)
