"""Draws tokens: prefill once a prompt, candidates behind it (`rl.models.streams`), one token at a time.

The next token is the inverse of the cumulative distribution at a stateless uniform number (`rl.models.noise`), so a
candidate does not depend on the batch it is drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rl.errors import RewindError
from rl.models.decoding import How, decode
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.drafting import Counts, decode_drafted, window_of
from rl.models.memory import Portions, rows_that_fit, sampling_cost
from rl.models.noise import Noise, prompt_key
from rl.models.streams import PrefixCache, Stream, shares_prompts
from rl.models.unified import UnifiedVLM


@dataclass(frozen=True)
class Drawn:
    """Sampled sequences: `ids_PGT` int64 and `logprobs_PGT` float32, [prompts, candidates, tokens].

    With a stop token, what follows it in a row is the pad id with log-probability 0. `counts` tells in how many passes
    behind the prompts they were drawn.
    """

    ids_PGT: Tensor
    logprobs_PGT: Tensor
    counts: Counts = field(default_factory=Counts)


@torch.no_grad()
def sample_tokens(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    *,
    num_samples: int,
    max_tokens: int,
    noise: Noise,
    stop: int | None = None,
    unconditional: Sequence[Sequence[Sequence[int]]] | None = None,
    truncation: Truncation | None = None,
    max_rows: int | None = None,
    first: int | Sequence[int] = 0,
    kept_PT: Tensor | None = None,
    after: Sequence[Sequence[int]] | None = None,
    draft_PT: Tensor | None = None,
    plain: bool = False,
    prefixes: PrefixCache | None = None,
) -> Drawn:
    """Draw `num_samples` continuations of each prompt under the active adapter.

    Args:
        vlm: the backbone.
        prompts: token ids, of any lengths.
        distribution: the only place where logits become probabilities.
        num_samples: candidates G a prompt.
        max_tokens: tokens T a candidate; exactly as many without `stop`.
        noise: seed and step; the rest of the noise is prompt, candidate and token.
        stop: an id that ends a row.
        unconditional: for a guided distribution, the prompts without their condition, a list for each free prompt.
        truncation: top-k and top-p, inference only; the returned log-probabilities include it.
        max_rows: the most rows decoded at once; None for the backbone's own, or as many as fit.
        first: number of the first candidate, for callers that draw some and later more: candidate g is the same. Or
            one number a prompt.
        kept_PT: int64 [P, T], ids that every candidate of a prompt has at a position, -1 where it is drawn. A kept id
            gets its log-probability from the same distribution, so a row's sum is still that of the whole sequence.
        after: ids that stand by rule behind each token (`PictureGrammar.after`): read, and neither drawn nor returned.
        draft_PT: int64 [P, T], guesses of what will be drawn, such as the source: where rows are few, several are read
            in one pass and those that come true are kept (`rl.models.drafting`). In float32 the
            candidates are the same.
        plain: return log-probabilities at temperature 1 and without truncation, however the tokens are drawn: what
            scoring gives of the same tokens. Not with a draft.
        prefixes: where long prompts are found that another call has read, and left for the next one; not with guidance.
    """
    if distribution.guided:
        assert unconditional is not None, "a guided distribution needs unconditional prompts"
    read = [prompts, *(unconditional if distribution.guided and unconditional else [])]
    every = [prompt for stream in read for prompt in stream]
    can_draft = draft_PT is not None and not plain and stop is None
    room = max_tokens + (0 if after is None else sum(map(len, after[: max_tokens - 1])))
    window = window_of(vlm, len(prompts) * num_samples, room) if can_draft else 0
    shared = shares_prompts(vlm, every) or window > 0
    allowed = len(distribution.allowed_ids_V)
    cost = sampling_cost(vlm, max(map(len, every)), room, allowed, shared, len(read), window)
    portions = Portions(rows_that_fit(cost, num_samples, vlm.device, vlm.max_rows if max_rows is None else max_rows))
    how = How(distribution, max_tokens, stop, truncation, after, plain)
    keys_P = torch.tensor([prompt_key(prompt) for prompt in prompts], device=vlm.device)
    firsts = list(first) if isinstance(first, Sequence) else [first] * len(prompts)
    first_P = torch.tensor(firsts, device=vlm.device)
    whole = _nothing((len(prompts), num_samples, max_tokens), vlm)
    prefilled: dict[range, list[Stream]] = {}
    prefill = Stream.prefill_long if shared else Stream.prefill
    if prefixes is not None and shared and not distribution.guided:
        prefill = prefixes.read
    widths, counts = [0], Counts()

    drafting = window > 0

    def work(part: range, group: range) -> None:
        nonlocal drafting
        if part not in prefilled:
            prefilled.clear()
            prefilled[part] = [prefill(vlm, stream[part.start : part.stop]) for stream in read]
        these, times = slice(part.start, part.stop), len(group)
        repeated = torch.arange(len(part), device=vlm.device).repeat_interleave(times)
        numbers = torch.arange(group.start, group.stop, device=vlm.device).repeat(len(part))
        keys, numbers = keys_P[these][repeated], numbers + first_P[these][repeated]
        kept = None if kept_PT is None else kept_PT[these].to(vlm.device)[repeated]
        drawn = None
        if draft_PT is not None and drafting:
            drafted = [stream.drafted_rows(times, room, window) for stream in prefilled[part]]
            guesses = draft_PT[these].to(vlm.device)[repeated]
            drawn = decode_drafted(drafted, how, partial(noise.uniform, keys, numbers), kept, guesses, window, counts)
            del drafted
            drafting = drawn is not None  # what does not pay for some rows is not tried for the others
        if drawn is None:
            rows = [s.shared_rows(times, room) if shared else s.rows(repeated, room) for s in prefilled[part]]
            drawn = decode(rows, how, partial(noise.uniform, keys, numbers), kept)
            counts.passes += drawn[0].shape[1] - 1
        for all_of_it, few in zip(whole, drawn, strict=True):
            all_of_it[these, group.start : group.stop, : few.shape[1]] = few.view(len(part), times, -1)
        widths.append(drawn[0].shape[1])  # with a stop token parts end at different lengths

    portions.over(range(len(prompts)), range(num_samples), work)
    ids_PGT, logprobs_PGT = whole
    if bool(logprobs_PGT.isnan().any()):
        raise RewindError(
            f"{vlm.name} gives probabilities that are no numbers: in float16 large values overflow, use --dtype "
            "bfloat16 or float32; a training run's weights may have diverged"
        )
    return Drawn(ids_PGT[..., : max(widths)], logprobs_PGT[..., : max(widths)], counts)


def _nothing(shape: tuple[int, int, int], vlm: UnifiedVLM) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of rows that have ended before they began."""
    return torch.full(shape, vlm.layout.pad, device=vlm.device), torch.zeros(shape, device=vlm.device)
