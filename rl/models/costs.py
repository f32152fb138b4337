"""What a row costs in bytes, from the sizes of a decoder: the one arithmetic of memory (without torch).

`rl.models.memory` asks it how many rows fit into what is free, `scripts/plan.py` what a run will need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

TOKENS_A_PASS = 4096
"""Tokens of long prompts that are read at once: enough to be bound by arithmetic."""
USUAL_ROWS = 64
"""More whole sequences at once are scored no faster; behind prompts that are read once, four times as many spans."""
DRAFTED_TOKENS, LEAST_WINDOW = 128, 4
"""Rows x window of a drafted pass: up to there it takes about as long as with one token a row; with more rows than
leave room for so many tokens each, nothing is drafted."""
LOGITS_AT_ONCE = 2**21
"""Log-probabilities, places x allowed ids, that scoring holds at once: 8 MiB, which a processor keeps at hand."""
SHARED_FROM = 128
"""Tokens from which on a prompt is shared: a shorter one is copied sooner than attended to in two parts."""


class Sizes(Protocol):
    """A decoder's sizes, as `trainers.plan.shapes.Shape` has them too."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder that is open."""

    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    weight_bytes: int


@dataclass(frozen=True)
class Cost:
    """Bytes of what is held at once: `prompt` for each prompt, `row` for each row behind one, `fixed` for all."""

    prompt: int
    row: int
    fixed: int = 0
    logits: int = 0
    """Of `fixed`, what scores take."""

    def fitting(self, each: int, free: float) -> int:
        """Rows that fit into so many bytes, `each` of them behind a prompt: whole prompts, or a part of one's rows."""
        left = int(free) - self.fixed
        whole, group = left // (self.prompt + each * self.row), (left - self.prompt) // self.row
        return whole * each if whole > 0 else min(group, each)

    def held(self, rows: int, each: int) -> int:
        """Bytes behind prompts that have been read, of so many rows, `each` of them behind a prompt."""
        return -(-rows // each) * self.prompt + rows * self.row


LEAST_SIDE = 16
"""Of a matrix product on tensor cores."""


def kernel_sides(several: bool, queries: int, key_bytes: int, room: int) -> tuple[int, int, int]:
    """Queries and keys that a program of `rl.models.gpu_attention` reads at once, and how deep that is pipelined, in so
    many bytes.

    Of six settings the quickest on an H200 for one query a span (64 rows x 1,024 keys x 32 heads of 128) and for
    several (8 prompts of 1,040 keys, 8 rows each); less where they do not fit, as with heads of 256 in float32.
    """
    keys, stages = (32, 4) if several else (64, 3)

    def fits() -> bool:
        held = 2 * keys * key_bytes * stages
        return held <= 0.9 * room and held + queries * key_bytes <= room

    while not fits() and (stages > 1 or keys > LEAST_SIDE):
        keys, stages = (keys, stages - 1) if stages > 1 else (keys // 2, stages)
    while not fits() and queries > LEAST_SIDE:
        queries //= 2
    return queries, keys, stages


def window_of(rows: int, tokens: int, at_once: int = DRAFTED_TOKENS) -> int:
    """Tokens of each row in a drafted pass of at most so many; 0 where drafting does not pay."""
    window = min(at_once // max(1, rows), tokens)
    return window if window >= LEAST_WINDOW else 0


def kv_bytes(sizes: Sizes, tokens: int = 1) -> int:
    """Keys and values of so many tokens in all layers."""
    return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * sizes.weight_bytes * tokens


def pass_bytes(sizes: Sizes, tokens: int) -> int:
    """What one layer holds while it reads so many tokens without gradients: residual and input of the gated MLP, gate,
    what it lets through, and their product; in half precision, where adapters are not merged, what they add first.
    """
    wide = 3 if sizes.weight_bytes == 4 else 4
    return tokens * sizes.weight_bytes * (2 * sizes.hidden + wide * sizes.intermediate)


def logits_bytes(tokens: int, allowed: int, drawn: bool = False) -> int:
    """Scores of so many tokens over the allowed ids in float32, divided, normalised; a draw sums them in float64, of
    which two stand beside them.
    """
    return tokens * allowed * (20 if drawn else 16)


def picture_bytes(pixels: int, channels: int) -> int:
    """Activations of the VQ image tokenizer for one picture: three and a half maps at full size, in float32."""
    return 7 * 4 * channels * pixels // 2


def prefill_cost(sizes: Sizes, prompt: int, streams: int = 1) -> tuple[int, int]:
    """Bytes of what each long prompt keeps, and of what one pass over some of them holds beside it."""
    return streams * kv_bytes(sizes, prompt), _read_at_once(sizes, prompt, max(1, TOKENS_A_PASS // prompt))


def _read_at_once(sizes: Sizes, prompt: int, prompts: int) -> int:
    """Of prompts that are read in one pass: their keys and values, a layer, and a mask of all pairs."""
    mask = prompt**2 * prompts * (1 + sizes.weight_bytes)
    return kv_bytes(sizes, prompts * prompt) + pass_bytes(sizes, prompts * prompt) + mask


def prefill_peak(sizes: Sizes, prompt: int, prompts: int, streams: int = 1) -> int:
    """Bytes while so many long prompts are read, a stream after the other, some of them in a pass."""
    few = max(1, TOKENS_A_PASS // prompt)
    whole, first = kv_bytes(sizes, prompts * prompt), _read_at_once(sizes, prompt, min(few, prompts))
    later = 0
    if prompts > few:  # what was read is copied to where all of them have room, before the next pass
        last = few if prompts >= 2 * few else prompts - few
        later = whole + max(kv_bytes(sizes, few * prompt), _read_at_once(sizes, prompt, last))
    return (streams - 1) * whole + max(first, later)


def sampling_cost(
    sizes: Sizes, prompt: int, drawn: int, allowed: int, shared: bool, streams: int = 1, window: int = 0
) -> Cost:
    """Of prompts of so many tokens whose rows draw so many, in `streams` that differ in what guidance leaves out.

    With a draft, rows read and draw `window` tokens at once.
    """
    at_once = max(1, window)
    logits = max(logits_bytes(at_once, allowed, drawn=True), 4 * (streams + 2) * at_once * allowed)
    if shared:
        kept, fixed = prefill_cost(sizes, prompt, streams)
        return Cost(kept, streams * (kv_bytes(sizes, drawn + window) + pass_bytes(sizes, at_once)) + logits, fixed)
    row = streams * (kv_bytes(sizes, prompt + drawn) + pass_bytes(sizes, 1)) + logits
    return Cost(streams * (kv_bytes(sizes, prompt) + pass_bytes(sizes, prompt)), row)


def scoring_cost(sizes: Sizes, prompt: int, span: int, shared: bool | None) -> Cost:
    """Of spans of so many tokens behind prompts that their rows share or (False) copy; None: prompts that are read anew
    in each row.
    """
    logits = logits_bytes(1, LOGITS_AT_ONCE)
    if shared is None:
        return Cost(0, pass_bytes(sizes, prompt + span), logits, logits)
    if shared:
        kept, fixed = prefill_cost(sizes, prompt)
        return Cost(kept, pass_bytes(sizes, span), fixed + logits, logits)
    return Cost(0, kv_bytes(sizes, 2 * prompt + span) + pass_bytes(sizes, prompt + span), logits)
