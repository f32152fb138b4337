"""Stateless noise: a number in [0, 1) for each (seed, step, prompt, candidate, token).

The same five numbers give the same draw whatever the batch, the chunk size, the rank or the point of resumption. The
prompt enters by its content (`prompt_key`), so nobody has to carry a row number around.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl.checks import check_whole
from rl.errors import RewindError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., 2014) on int64; products wrap around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def prompt_key(prompt_ids: Sequence[int]) -> int:
    """A signed 64-bit key of a prompt's tokens, the same on every machine."""
    digest = hashlib.blake2b(np.asarray(prompt_ids, dtype="<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True)
class Noise:
    """The noise of one call: `seed` of the run and `step` within it."""

    seed: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        check_whole("a seed", self.seed)
        check_whole("a step", self.step)
        if not (abs(self.seed) < 2**63 and abs(self.step) < 2**63):
            raise RewindError(f"a seed must fit into 64 bits, not {self.seed}")

    def uniform(self, prompt_keys_B: Tensor, candidates_B: Tensor, token: int | Tensor) -> Tensor:
        """float64 [B] in [0, 1) for int64 prompt keys and candidate numbers [B] at a token position, or one each."""
        x = _mix(torch.full_like(prompt_keys_B, self.seed) + _GOLDEN)  # else (seed, step) = (0, 31) were (1, 0)
        for part in (self.step, prompt_keys_B, candidates_B, token):
            x = _mix(x * 31 + part + _GOLDEN)
        return ((x >> 11) & 0x1FFFFFFFFFFFFF).double() * 2.0**-53
