"""The one place that opens a pickle: Meta publishes its weights so, and only tensors in plain containers are read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.errors import RewindError


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one in `state_dict`, on the CPU, mapped from the file as they are read.

    Raises:
        RewindError: a file that cannot be read, or that holds more than tensors and plain containers.
    """
    try:
        mapped = zipfile.is_zipfile(file)  # torch's format before 1.6 is not, and is read whole
        state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds here, the unpickler's own among them
        raise RewindError(
            f"{file} cannot be read as a pickle that holds tensors and nothing else "
            f"({' '.join(str(error).split())[:200]}): only such ones are opened"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}
