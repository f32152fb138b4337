"""CUDA graphs of the sampler's step: its many small kernels are launched at once, not one by one from Python."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from rl.models.unified import UnifiedVLM

logger = logging.getLogger("rl")

LEAST_STEPS = 8
"""Steps from which on recording one pays (docs/gpu.md)."""
EAGER_STEPS = 2
"""Steps before the recording, in which kernels are compiled and workspaces made."""


class Recorded:
    """What a function of one tensor of fixed shape does, recorded at its third call and only replayed from then on.

    Whatever it reads beside its argument has to lie where it lay, as weights and caches do. Where it cannot be recorded
    it goes on as it is, which is said. The function comes with each call: kept here, it would keep caches alive.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.recording: tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None = None

    def __call__(self, function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """`function(given)`; it is the same function each time."""
        self.calls += 1
        if self.calls == EAGER_STEPS + 1:
            self._record(function, given.clone())
        if self.recording is None:
            return function(given)
        graph, place, found = self.recording
        place.copy_(given)
        graph.replay()
        return found.clone()  # the next replay writes over it

    @property
    def failed(self) -> bool:
        """Whether it was tried in vain."""
        return self.calls > EAGER_STEPS and self.recording is None

    def _record(self, function: Callable[[Tensor], Tensor], place: Tensor) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile, as NCCL's watchdog does.
            with torch.cuda.graph(graph, stream=_stream(place.device.index), capture_error_mode="thread_local"):
                found = function(place)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
            if why not in _told:
                _told.add(why)
                logger.warning("a step of the sampler is no CUDA graph (%s): its kernels are launched one by one", why)
            return
        self.recording = graph, place, found


@cache
def _stream(number: int | None) -> torch.cuda.Stream:
    """Where a GPU's steps are recorded: torch's own is that of the GPU that was first."""
    return torch.cuda.Stream(number)


def can_record(vlm: UnifiedVLM) -> bool:
    """Whether a pass does nothing but launch kernels on weights that stay where they are."""
    sharded = any(hasattr(weight, "ds_id") for weight in vlm.transformer().parameters())
    quantised = getattr(vlm.model, "is_quantized", False)
    return not (sharded or quantised or vlm.divided)


_told: set[str] = set()
