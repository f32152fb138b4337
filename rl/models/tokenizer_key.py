"""Which image tokenizer a model has: a hash of its weights and of what is done to a picture before."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from rl.pictures import SHAPE_RULE, SIZE_RULE

PREPROCESSING = 1
"""Counted up whenever the rules of `rl.pictures` or a family's own give the same picture other pixels."""
_NOT_READ = ("decoder.", "post_quant_conv.")


def tokenizer_key(vlm: Any) -> str:
    """SHA-256 over the weights of a backbone's `vqmodel` that encode, its family and the size of its pictures.

    The decoder takes no part, and neither does the language model: bases that share a tokenizer share its codes.
    """
    how = (PREPROCESSING, SIZE_RULE, SHAPE_RULE, vlm.family, str(vlm.image_size), vlm.cell, vlm.unit)
    digest = hashlib.sha256(repr(how).encode())
    for name, tensor in sorted(vlm.vqmodel.state_dict().items()):
        if not name.startswith(_NOT_READ):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
