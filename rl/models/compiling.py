"""Passes of one token through `torch.compile`: a sampler's step has fixed shapes, so a few graphs serve.

Only asked for, never by default: the first picture waits a minute for the compiler, which pays in long runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rl.errors import RewindError

GRAPHS = 64
"""Graphs that one function may have: one for each adapter, way of attention and kind of rows. torch allows eight."""


def compiled_step(transformer: nn.Module, device: torch.device, name: str) -> Callable[..., Any]:
    """The forward of a decoder stack, compiled when it first runs.

    Raises:
        RewindError: nothing can be compiled here, which is tried out.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # whatever a missing or broken compiler makes torch raise; nothing else runs here
        said = " ".join(str(error).split())[:200]
        raise RewindError(
            f"torch.compile does not work here on {device.type} ({said}): install a C++ compiler, on a "
            f"GPU Triton too, or open {name} without compile"
        ) from error
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    step: Callable[..., Any] = torch.compile(transformer.forward)
    return step
