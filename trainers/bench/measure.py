"""Seconds and bytes of a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Size = dict[str, int]
"""How much of what a part does, by name: prompts, candidates, repeats, ..."""


def seconds(function: Callable[[], Any], repeats: int, warm: int = 1) -> list[float]:
    """Seconds of each of `repeats` calls, after `warm` that are not counted."""
    return in_turns([function], repeats, warm)[0]


def in_turns(functions: Sequence[Callable[[], Any]], repeats: int, warm: int = 1) -> list[list[float]]:
    """Of each function what `seconds` returns, a call of one after a call of the other."""
    found: list[list[float]] = [[] for _ in functions]
    for number in range(repeats + warm):
        for spent, function in zip(found, functions, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm:
                spent.append(time.perf_counter() - start)
    return found


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made inside a call held at once, beyond what was there before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    results: Any = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def state_bytes(models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer] = ()) -> int:
    """Bytes of weights, buffers, gradients and optimizer state; what several share counts once."""
    tensors: list[Tensor] = []
    for model in models:
        tensors += [*model.parameters(), *model.buffers()]
        tensors += [p.grad for p in model.parameters() if p.grad is not None]
    for optimizer in optimizers:
        tensors += [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
