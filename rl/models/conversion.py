"""A published checkpoint, in whatever layout it has, once into the plain form of a base folder.

What transformers opens is opened and saved; Meta's pickles are read, renamed and written a file at a time. Either way
the VQ tokenizer stays float32, its decoder has a file to itself, and `rewind.json` says where it all comes from.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rl.actions import ActionBins
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.families.meta_chameleon import MetaCheckpoint, is_meta
from rl.models.families.vqgan_files import check_encoder, decoder_of, vq_weights, write_decoder
from rl.models.hub import META_FILES, folder_of
from rl.models.memory import available_ram
from rl.models.opening import load_base
from rl.models.saving import save_base, write_card
from rl.models.settings import Settings
from rl.models.shards import write_shards
from rl.models.sizes import PictureSize
from rl.running.files import partial

_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}  # others: 1


@dataclass(frozen=True)
class Conversion:
    """A conversion that can begin: everything that can be wrong with the input has been looked at.

    Attributes:
        write: writes the base into an empty folder.
        inputs: the folders that are read.
        needed: bytes that it will write.
        draws: whether the base will have a VQ decoder.
    """

    write: Callable[[Path], None]
    inputs: list[Path]
    needed: int
    draws: bool


def file_size(text: str) -> int:
    """Bytes from '5GB', '500MB', '2GiB'.

    Raises:
        RewindError: no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if not size:
        raise RewindError(f"'{text}' is no size of a file: write 5GB or 500MB")
    return size


def prepare(
    name: str,
    output: Path,
    vq: str | None = None,
    dtype: str | None = None,
    max_shard_size: int = 5 * 10**9,
    family: str | None = None,
    actions: ActionBins | None = None,
) -> Conversion:
    """Look at a checkpoint and at the room for a copy of it.

    Args:
        name: a folder, shipped name or Hub id; one in Meta's layout, or one that `load_base` opens.
        output: where the base is to be written; only the disk is looked at.
        vq: a folder or Hub id with the VQ tokenizer, where the checkpoint lacks a part of it.
        dtype: of the language model; None and 'auto' keep its own.
        max_shard_size: the most bytes of weights in a file.
        family: refuse a checkpoint of another one.
        actions: ranges of actions that are vectors, which the base keeps.

    Raises:
        RewindError: what cannot be opened, of another family, or too large for the disk or the memory.
    """
    settings, folder = Settings(dtype=dtype, device="cpu"), folder_of(name, META_FILES)  # weights go to a disk alone
    vq_folder = None if vq is None else folder_of(vq)
    card: dict[str, Any] = {"converted": {"from": name, "vq": vq, "dtype": dtype, **_revision(folder)}}
    card |= {} if actions is None else {"actions": {"kind": "bins", **actions.card()}}
    inputs = [folder] if vq_folder is None else [folder, vq_folder]
    if is_meta(folder):
        _check_family(name, ChameleonVLM.family, family)
        return _from_meta(MetaCheckpoint.find(folder), vq_folder, output, card, max_shard_size, inputs, dtype)
    needed = _stored_bytes(folder, dtype)
    _check_disk(output, needed)
    _check_memory(name, needed, "a machine with more")
    vlm = load_base(name, settings, vq)
    _check_family(name, vlm.family, family)
    if actions is not None:
        vlm.use_actions(actions)
    return Conversion(lambda place: save_base(vlm, place, card, max_shard_size), inputs, needed, vlm.can_draw)


def _from_meta(
    meta: MetaCheckpoint,
    vq_folder: Path | None,
    output: Path,
    card: dict[str, Any],
    max_shard_size: int,
    inputs: list[Path],
    dtype: str | None,
) -> Conversion:
    stored = meta.parts[0]["output.weight"].dtype
    wanted = stored if dtype in (None, "auto") else getattr(torch, str(dtype))
    vq = vq_weights(meta.tokenizers, vq_folder)
    tokenizer = meta.tokenizer()
    config = meta.config(tokenizer, vq, wanted)
    decoder = decoder_of(config.vq_config, vq, vq.where if vq.where.is_dir() else vq.where.parent)
    check_encoder(config.vq_config, vq)
    ChameleonVLM.layout_of(config, tokenizer, str(meta.models), PictureSize.of(config.vq_config.resolution))
    needed = sum(t.numel() for part in meta.parts for t in part.values()) * wanted.itemsize
    needed += sum(t.nbytes for part in (vq.encoder, vq.decoder) for t in part.values())
    _check_disk(output, needed)
    _check_memory(str(meta.models), min(needed, 2 * max_shard_size), "a smaller --max_shard_size")

    def write(place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        encoder = ((f"model.vqmodel.{key}", value) for key, value in vq.encoder.items())
        write_shards(place, chain(meta.tensors(wanted), encoder), max_shard_size)
        if decoder is not None:
            write_decoder(decoder, place)
        tokenizer.save_pretrained(place)
        told = {"family": ChameleonVLM.family, "image_size": config.vq_config.resolution, **card, "known_words": None}
        write_card(place, told)
        config.save_pretrained(place)

    return Conversion(write, inputs, needed, decoder is not None)


def _check_family(name: str, found: str, wanted: str | None) -> None:
    if wanted is not None and wanted != found:
        raise RewindError(f"{name} is a checkpoint of the family '{found}', not of '{wanted}': leave --family out")


def _stored_bytes(folder: Path, dtype: str | None) -> int:
    """Bytes of a folder's weights in a dtype, from the headers of its safetensors files; 0 if there are none."""
    itemsize = None if dtype in (None, "auto") else getattr(torch, str(dtype)).itemsize
    found = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(str(file), "pt") as opened:
                parts = [opened.get_slice(key) for key in opened.keys()]  # noqa: SIM118  (not a dict)
                found += sum(prod(p.get_shape()) * (itemsize or _BYTES.get(p.get_dtype(), 1)) for p in parts)
        except (OSError, SafetensorError):
            continue  # `load_base` says it better
    return found


def _check_disk(output: Path, needed: int) -> None:
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free + _bytes_of(partial(output))  # what a killed try left goes first
    if free < needed:
        raise RewindError(
            f"the base takes {needed / 1e9:.1f} GB and the disk of {place} has {free / 1e9:.1f} GB left: make room, or "
            "use another --output"
        )


def _check_memory(name: str, needed: int, instead: str) -> None:
    free = available_ram()
    if free is not None and free < needed:
        raise RewindError(
            f"converting {name} takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: use {instead}"
        )


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _revision(folder: Path) -> dict[str, str]:
    """Which commit a folder of the Hub's cache holds."""
    return {"revision": folder.name} if folder.parent.name == "snapshots" else {}
