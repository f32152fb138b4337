"""A cache of keys and values with room for what will be read: transformers' growing one copies all of it each step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """A layer of transformers' growing cache whose tensors do not grow, as a pass sees it: `keys` and `values` are
    views [R, heads, T, D] of what has been written.

    Args:
        keys_RHTD: of the prompts, a row each; copied.
        values_RHTD: the same.
        room: tokens that a row will read.
    """

    def __init__(self, keys_RHTD: Tensor, values_RHTD: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys_RHTD, values_RHTD)
        rows, heads, length, size = keys_RHTD.shape
        self._whole = [t.new_empty((rows, heads, length + room, size)) for t in (keys_RHTD, values_RHTD)]
        self._length = 0
        self.update(keys_RHTD, values_RHTD)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind those that are there; returns all of them."""
        end = self._length + key_states.shape[2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, self._length : end] = new
        self._length = end
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values


def reserved_cache(layers: list[tuple[Tensor, Tensor]], rows_R: Tensor, room: int) -> DynamicCache:
    """A cache of some rows of a prefill's keys and values [P, heads, T, D], with room for so many tokens a row."""
    cache = DynamicCache()
    for keys, values in layers:
        here = rows_R.to(keys.device)  # a divided model has its layers on several devices
        cache.layers.append(ReservedLayer(keys[here], values[here], room))
    return cache
