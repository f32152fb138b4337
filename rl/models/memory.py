"""How many rows fit into memory at once.

A row's bytes follow from the model's config and precision (`rl.models.costs`); what is free is asked of the device.
Chunks change no result but the rounding of sums, so nobody needs to know how many there were.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rl.checks import check_whole
from rl.errors import RewindError
from rl.models import costs
from rl.models.costs import Cost, Decoder
from rl.models.known import MAX_ROWS

if TYPE_CHECKING:
    from rl.models.picture_tokens import PictureTokens
    from rl.models.unified import UnifiedVLM

logger = logging.getLogger("rl")
Found = TypeVar("Found")

SHARE_OF_GPU, SHARE_OF_RAM = 0.9, 0.5
"""Of what is free: a GPU is ours, and its allocator needs some room; RAM belongs to others too."""
GIB = 2**30


def sizes_of(vlm: UnifiedVLM) -> Decoder:
    """The sizes of a backbone, from its config and the precision of its weights."""
    config: Any = vlm.transformer().config
    return Decoder(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        weight_bytes=vlm.head_weight().element_size(),
    )


def kv_bytes(vlm: UnifiedVLM, tokens: int = 1) -> int:
    """Keys and values of so many tokens in all layers."""
    return costs.kv_bytes(sizes_of(vlm), tokens)


def picture_bytes(vlm: PictureTokens) -> int:
    """Activations of the VQ image tokenizer for one picture."""
    config = getattr(getattr(vlm, "vqmodel", None), "config", None)
    pixels = vlm.picture_size.height * vlm.picture_size.width
    return costs.picture_bytes(pixels, int(getattr(config, "base_channels", 128)))


def sampling_cost(
    vlm: UnifiedVLM, prompt: int, drawn: int, allowed: int, shared: bool, streams: int = 1, window: int = 0
) -> Cost:
    """`costs.sampling_cost` of a backbone."""
    return costs.sampling_cost(sizes_of(vlm), prompt, drawn, allowed, shared, streams, window)


def scoring_cost(vlm: UnifiedVLM, prompt: int, span: int, shared: bool | None) -> Cost:
    """`costs.scoring_cost` of a backbone."""
    return costs.scoring_cost(sizes_of(vlm), prompt, span, shared)


def free_bytes(device: torch.device) -> int | None:
    """What may be used of a device's memory now; None where nobody can say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE_OF_GPU * (torch.cuda.mem_get_info(device)[0] + cached))
    if device.type != "cpu":
        return None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = available_ram()
    return None if available is None else int(SHARE_OF_RAM * available / processes)


def available_ram(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be had without swapping, within the limit of a container."""
    try:
        lines = dict(line.split(":", 1) for line in proc.read_text().splitlines())
        found = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found = min(found, limit - used + int(stat["inactive_file"]))  # files that were read are no use of memory
    except (OSError, KeyError, ValueError):  # no limit, written 'max', or no such group
        pass
    return found


def at_most(max_rows: int | None) -> None:
    """Bound the rows at once of whatever this process opens, beside what a call, a role or a backbone says: for scripts
    whose models are opened in several places.

    Raises:
        RewindError: less than one row.
    """
    if max_rows is not None:
        check_whole("max_rows", max_rows, least=1)
    _of_this_process["max_rows"] = max_rows


_of_this_process: dict[str, int | None] = {"max_rows": None}


def memory_ended(error: RuntimeError) -> bool:
    """Whether an error says that an allocation was too large, on a GPU or (where torch has no class for it) a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def rows_that_fit(
    cost: Cost, each: int, device: torch.device, max_rows: int | None = None, usual: int = MAX_ROWS
) -> int:
    """Rows to hold at once: what fits, at most `max_rows`, or what is quick (`usual`) where nothing is said.

    Args:
        cost: of a prompt and of a row.
        each: rows behind each prompt.
        device: where they will be.
        max_rows: what the caller allows.
        usual: more rows than that are no faster.

    Raises:
        RewindError: not even one row fits.
    """
    if max_rows is not None:
        check_whole("max_rows", max_rows, least=1)
    most, free = max_rows or usual, free_bytes(device)
    most = min(most, _of_this_process["max_rows"] or most)
    if free is None:
        return most
    fitting = cost.fitting(each, free)
    if fitting < 1:
        # A share that is too small is no reason yet: the whole may do.
        share = SHARE_OF_GPU if device.type == "cuda" else SHARE_OF_RAM
        needed = cost.prompt + cost.row + cost.fixed
        if free / share < needed:
            raise RewindError(
                f"one row needs {needed / GIB:.2f} GiB and {free / share / GIB:.2f} GiB are free on {device}: free "
                "some, or lower it by smaller pictures or half precision (--dtype bfloat16)"
            )
        fitting = 1
    return min(most, fitting)


class Portions:
    """Work in rectangles of prompts and rows behind each, at most `rows` at once.

    Out of memory all the same, it halves the rows once, says so and goes on.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.halved = rows, False

    def over(self, prompts: range, each: range, work: Callable[[range, range], None]) -> None:
        """`work` on ranges that cover prompts x each; prompts one after the other, rows within them."""
        size = max(1, self.rows // max(1, len(each)))
        start = prompts.start
        while start < prompts.stop:
            part = range(start, min(start + size, prompts.stop))
            begin = each.start
            while begin < each.stop:
                few = range(begin, min(begin + self.rows, each.stop))
                if not self._worked(work, part, few):
                    self.over(part, few, work)
                begin = few.stop
            start = part.stop
            size = min(size, max(1, self.rows // max(1, len(each))))

    def _worked(self, work: Callable[[range, range], None], part: range, few: range) -> bool:
        try:
            work(part, few)
            return True
        except RuntimeError as error:
            if not memory_ended(error):
                raise
            if self.halved or self.rows == 1:
                why = str(error).splitlines()[0].rstrip(". ")
                raise RewindError(
                    f"out of memory with {len(part) * len(few)} rows at once: {why}. Give --max_rows less than that, "
                    "or free memory"
                ) from error
        self.rows, self.halved = max(1, len(part) * len(few) // 2), True
        logger.warning("out of memory: from here on %d rows at once (--max_rows sets it from the start)", self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False


def free_memory() -> None:
    """Give back what models that nobody holds any more have left: a GPU's allocator keeps it for this process alone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_parts(count: int, rows: int, work: Callable[[range], Found]) -> list[Found]:
    """What `work` returns for ranges that cover range(count), at most `rows` of them at once."""
    found: list[Found] = []
    Portions(rows).over(range(count), range(1), lambda part, _: found.append(work(part)))
    return found
