"""Which base an adapter was trained on, by its weights and not by its name: folders are moved, renamed, converted.

A fingerprint is read from the files of a checkpoint, a few slices of a few tensors, so that it costs milliseconds for
any size and is the same whatever precision, device or sharding the model is then opened with. Its values are rounded to
bfloat16: a base in float32 and its copy in bfloat16 are one base. (A copy in float16 is another, since rounding twice
gives other numbers.) The tensors are such as every family has and no conversion changes: embeddings, head, norms,
values and the last matrix of a layer; queries and keys are stored in several orders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rl.errors import RewindError
from rl.models.shards import INDEX_FILE
from rl.models.vq_files import DECODER_FILE, VQ_FILE
from rl.running.files import read_json
from rl.running.resumption import FINGERPRINT

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
_OF_LAYERS = ("input_layernorm.weight", "self_attn.v_proj.weight", "mlp.down_proj.weight")
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_NOT_LANGUAGE = re.compile(r"vqmodel|vision|visual|action_head")
_FLOATS = ("F64", "F32", "BF16", "F16")
ROWS, COLUMNS = 32, 256
"""Rows of a matrix that are looked at, evenly from first to last (some of them of image codes), and columns of each."""


@dataclass(frozen=True)
class Fingerprint:
    """A base's shape and the SHA-256 of some of its weights."""

    hidden_size: int
    layers: int
    vocabulary: int
    sha256: str

    def __str__(self) -> str:
        return (
            f"hidden size {self.hidden_size}, {self.layers} layers, {self.vocabulary} ids, weights {self.sha256[:12]}"
        )

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of_told(cls, told: Any) -> Fingerprint | None:
        """From what `told` gave; None for anything else."""
        try:
            found = cls(**told)
        except TypeError:
            return None
        return found if isinstance(found.sha256, str) else None


def for_resume(found: Fingerprint | None) -> dict[str, str]:
    """What a run's config says of its base, so that it can go on where the base lies elsewhere, and not on another."""
    return {} if found is None else {FINGERPRINT: found.sha256}


def fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint of the base in a folder; None where there is none: no safetensors, or stored in 4 or 8 bit."""
    try:
        return _fingerprint(_tensors(folder))
    except (OSError, SafetensorError, RewindError):
        return None  # whoever opens the folder says it better


def _tensors(folder: Path) -> dict[str, Path]:
    """The file of every tensor of the language model."""
    whole, index = folder / "model.safetensors", folder / INDEX_FILE
    if index.is_file() and not whole.is_file():
        told = read_json(index).get("weight_map")
        found = {name: folder / file for name, file in told.items()} if isinstance(told, dict) else {}
    else:
        files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
        found = {}
        for file in files:
            if file.name not in (DECODER_FILE, VQ_FILE, "adapter_model.safetensors"):
                with safe_open(str(file), "pt") as opened:
                    found |= dict.fromkeys(opened.keys(), file)
    return {name: file for name, file in found.items() if not _NOT_LANGUAGE.search(name)}


def _fingerprint(tensors: dict[str, Path]) -> Fingerprint | None:
    layers = {int(match[1]) for name in tensors if (match := _LAYER.search(name))}
    embedding = next((name for name in sorted(tensors) if name.endswith(_EMBEDDING)), None)
    if embedding is None or not layers:
        return None
    head = next((name for name in sorted(tensors) if name.endswith(_HEAD)), embedding)  # tied ones are stored once
    chosen = [embedding, head, *_of_layers(tensors, {0, len(layers) // 2, max(layers)})]
    digest, shape = hashlib.sha256(), (0, 0)
    for name in chosen:
        with safe_open(str(tensors[name]), "pt") as opened:
            part = opened.get_slice(name)
            if part.get_dtype() not in _FLOATS:
                return None
            size = part.get_shape()
            shape = tuple(size) if name == embedding else shape
            digest.update(str(size).encode())
            for row in _rows(part, size):
                digest.update(row.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return Fingerprint(hidden_size=shape[1], layers=len(layers), vocabulary=shape[0], sha256=digest.hexdigest())


def _of_layers(tensors: dict[str, Path], numbers: set[int]) -> list[str]:
    """The tensors of some layers that are looked at, in order."""
    found = {
        (int(match[1]), match[2]): name
        for name in tensors
        if (match := _LAYER.search(name)) and int(match[1]) in numbers and match[2] in _OF_LAYERS
    }
    return [found[key] for key in sorted(found)]


def _rows(part: Any, size: list[int]) -> Iterator[Tensor]:
    if len(size) == 1:
        yield part[: ROWS * COLUMNS]
        return
    for row in sorted({number * (size[0] - 1) // (ROWS - 1) for number in range(ROWS)}):
        yield part[row : row + 1, :COLUMNS]
