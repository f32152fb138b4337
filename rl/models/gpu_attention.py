"""Attention of a few new tokens a row to a span of keys, as one Triton kernel: what the sampler does on a GPU.

It reads each key and value once, takes the span's ends from the device (so that one CUDA graph serves every length,
`rl.models.graphs`), needs no mask, and merges with the part that was attended to before. Imported on a GPU alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rl.models.costs import LEAST_SIDE, kernel_sides

WARPS = 4
_CARDS = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
ROOM = min((getattr(card, "shared_memory_per_block_optin", 65_536) for card in _CARDS), default=65_536)
"""Bytes of shared memory that a program may take; AMD's cards do not say, and have 64 KiB."""
MOST_QUERIES = 64
"""Of a program: what registers hold."""


LOG2_E = 1.4426950408889634
"""Exponentials are powers of two here. The scale is a constant: torch.compile would make 64 bits of a number."""


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, begin, end, before, before_sum, found, found_sum, heads, size,
    step_query, step_key_row, step_key_head, step_key, step_value_row, step_value_head, step_value, step_end,
    TIMES: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, MERGES: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    span, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    numbers = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    places, parts = tl.arange(0, KEYS), tl.arange(0, SIZE)
    real, inner = numbers < TIMES * GROUPS, parts < size
    row, of_head = span * TIMES + numbers // GROUPS, head * GROUPS + numbers % GROUPS
    at = row * step_query + of_head * size
    both = real[:, None] & inner[None, :]
    asked = tl.load(query + at[:, None] + parts[None, :], mask=both, other=0.0)
    first, last = tl.load(begin + span), tl.load(end + span * step_end)
    keys += span * step_key_row + head * step_key_head
    values += span * step_value_row + head * step_value_head
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mean = tl.zeros([QUERIES, SIZE], tl.float32)
    ends = last + numbers // GROUPS * CAUSAL  # of each query
    last += (TIMES - 1) * CAUSAL
    for start in range(first, last, KEYS):
        place = start + places
        some = (place < last)[:, None] & inner[None, :]
        key = tl.load(keys + place[:, None] * step_key + parts[None, :], mask=some, other=0.0)
        scores = tl.dot(asked, tl.trans(key), input_precision=PRECISION) * SCALE
        scores = tl.where(place[None, :] < ends[:, None], scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1))
        weights, fade = tl.exp2(scores - new[:, None]), tl.exp2(highest - new)
        value = tl.load(values + place[:, None] * step_value + parts[None, :], mask=some, other=0.0)
        total = total * fade + tl.sum(weights, 1)
        mean = mean * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        highest = new
    places_out = row * heads * GROUPS + of_head
    if MERGES:
        known = tl.load(before_sum + places_out, mask=real, other=float("-inf")) * 1.4426950408889634
        new = tl.maximum(highest, known)
        fade, weight = tl.exp2(highest - new), tl.exp2(known - new)
        other = tl.load(before + places_out[:, None] * size + parts[None, :], mask=both, other=0.0)
        total = total * fade + weight
        mean = mean * fade[:, None] + weight[:, None] * other
        highest = new
    out = (mean / total[:, None]).to(found.dtype.element_ty)
    tl.store(found + places_out[:, None] * size + parts[None, :], out, mask=both)
    tl.store(found_sum + places_out, (highest + tl.log2(total)) * 0.6931471805599453, mask=real)


def attend(
    query_RHD: Tensor,
    keys: Tensor,
    values: Tensor,
    begin_B: Tensor,
    end_B: Tensor,
    scaling: float,
    before: tuple[Tensor, Tensor] | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention of each row's query to its span of keys, and the log of its sum of exponentials, float32 [R, H].

    Args:
        query_RHD: [R, H, D], the last two axes contiguous; rows b * R / B + g read span b.
        keys: [B, KV heads, T, D], last axis contiguous; H is a multiple of its heads. `values` alike.
        begin_B: int64 [B], the first key that is read; `end_B` the one behind the last, one more at least.
        scaling: of the scores.
        before: the same two of another span of the same rows, with which this one is merged.
        causal: a span's rows stand behind one another: each reads one key more than the row before it, the first up to
            `end_B`.

    Returns:
        [R, H, D], float32, of the query's dtype where merged.
    """
    (rows, heads, size), (spans, kv_heads, _, _) = query_RHD.shape, keys.shape
    times, groups = rows // spans, heads // kv_heads
    found = torch.empty(rows, heads, size, dtype=query_RHD.dtype if before else torch.float32, device=keys.device)
    sums = torch.empty(rows, heads, dtype=torch.float32, device=keys.device)
    width = max(LEAST_SIDE, triton.next_power_of_2(size))
    queries = min(max(LEAST_SIDE, triton.next_power_of_2(times * groups)), MOST_QUERIES)
    queries, at_once, stages = kernel_sides(times > 1, queries, width * keys.element_size(), ROOM)
    _attend[(spans, kv_heads, triton.cdiv(times * groups, queries))](
        query_RHD, keys, values, begin_B, end_B, *(before or (found, sums)), found, sums, kv_heads, size,
        query_RHD.stride(0), *keys.stride()[:3], *values.stride()[:3], end_B.stride(0),
        TIMES=times, GROUPS=groups, SIZE=width,
        QUERIES=queries, KEYS=at_once, CAUSAL=causal, MERGES=before is not None, SCALE=scaling * LOG2_E,
        PRECISION="ieee" if keys.dtype == torch.float32 else "tf32", num_warps=WARPS, num_stages=stages,
    )  # fmt: skip
    return found, sums
