"""Safetensors files of a limited size with transformers' index, written from a stream of tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

INDEX_FILE = "model.safetensors.index.json"


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> int:
    """Write tensors as `model-0000I-of-0000N.safetensors`, or as `model.safetensors` where one file is enough.

    No more tensors are held than go into one file.

    Args:
        folder: where to.
        tensors: names and tensors, read one after the other.
        max_bytes: the most bytes of tensors in a file; a larger tensor has a file to itself.

    Returns:
        Bytes of all tensors.
    """
    files: list[list[str]] = []
    part: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        files.append(list(part))
        save_file(part, _file(folder, len(files), 0), {"format": "pt"})
        part.clear()

    for name, tensor in tensors:
        more = tensor.numel() * tensor.element_size()
        if part and size + more > max_bytes:
            write()
            size = 0
        part[name] = tensor.contiguous()
        size, total = size + more, total + more
    write()
    if len(files) == 1:
        _file(folder, 1, 0).replace(folder / "model.safetensors")
        return total
    where: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = _file(folder, number, len(files))
        _file(folder, number, 0).replace(file)
        where |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return total


def _file(folder: Path, number: int, count: int) -> Path:
    return folder / f"model-{number:05d}-of-{count:05d}.safetensors"
