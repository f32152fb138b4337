"""The source as a draft: several tokens a pass, and still the very candidates that one token a pass would give.

With stateless noise the token at a position is a function of what stands before it. So guess that the next tokens are
the source's, read them in one pass, draw at each position with its own noise, and keep what agrees, and the first that
does not (exact: Wiggers & Hoogeboom, arXiv 2002.09928; with other drafts for images: arXiv 2410.01699). It pays while
rows x window are so few that a pass takes as long as reading the weights, and most of a picture stays as it is. In half
precision passes of several tokens round otherwise than those of one: there the candidates are as good, not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rl.models import costs
from rl.models.attention import can_share
from rl.models.decoding import How, invert
from rl.models.streams import SharedRows
from rl.models.unified import UnifiedVLM

TOKENS_A_PASS = costs.DRAFTED_TOKENS
TRIED_PASSES = 8
"""Passes after which, and after twice, four times as many ..., it is looked whether a draft saves any: a picture begins
with its top, where least changes."""
DEARER, DEARER_THAN_COMPILED = 1.4, 1.6
"""How many passes of one token a drafted pass takes as long as on a GPU, where both are CUDA graphs (docs/gpu.md), and
where `--compile` makes those of one token quicker. Elsewhere few tokens take about as long as one."""


@dataclass
class Counts:
    """Passes behind the prompts; guesses that were read, and those of them that came true."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, other: Counts) -> None:
        """Count what another call did."""
        self.passes += other.passes
        self.drafted += other.drafted
        self.accepted += other.accepted

    def since(self, before: Counts) -> Counts:
        """What was counted after a copy was taken."""
        return Counts(self.passes - before.passes, self.drafted - before.drafted, self.accepted - before.accepted)

    @property
    def share(self) -> float:
        """Share of the guesses that came true, 0 where none was read: unlike their number, it is comparable on one kind
        of device. On a GPU passes are all as wide, so that more is guessed in vain.
        """
        return self.accepted / max(1, self.drafted)

    def figures(self) -> dict[str, float]:
        """As they are logged: `passes`, `drafted`, and in `accepted` the share of the guesses that came true."""
        return asdict(self) | {"accepted": self.share}


def window_of(vlm: UnifiedVLM, rows: int, tokens: int) -> int:
    """Tokens of each row in a pass; 0 where drafting does not pay or the attention cannot do it."""
    window = costs.window_of(rows, tokens, TOKENS_A_PASS)
    return window if window and can_share(vlm) else 0


def decode_drafted(
    streams: Sequence[SharedRows],
    how: How,
    uniform: Any,
    kept_RT: Tensor | None,
    draft_RT: Tensor,
    window: int,
    counts: Counts,
) -> tuple[Tensor, Tensor] | None:
    """What `decode` gives, ids int64 and log-probabilities float32 [rows, T], in fewer passes; see `sample_tokens`.
    None where too few guesses come true for that: begin anew without a draft, the candidates are the same.
    """
    line = _Line(how, uniform, kept_RT, draft_RT)
    end, before, fixed = line.end, counts.passes, streams[0].prefix.spans is not None
    guess = line.guess_RS
    ids = torch.nn.functional.pad(torch.zeros_like(guess), (0, window))  # passes may reach over the end
    logprobs = torch.zeros_like(ids, dtype=torch.float32)
    done = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    read_and_true = torch.zeros(2, dtype=torch.long, device=ids.device)
    hidden = [stream.hidden[:, None] for stream in streams]
    while True:
        column = torch.arange(hidden[0].shape[1], device=ids.device)
        at = done[:, None] + column
        inside = at.clamp(max=end - 1)
        token, logprob = line.draw(hidden, streams[0].vlm, inside)
        agrees = (token == guess.gather(1, inside))[:, :-1]
        true = torch.minimum(agrees.long().cumprod(1).sum(1), (end - done - 1).clamp(min=0))
        running = done < end
        new = torch.where(running, 1 + true, 0)  # what agrees, and the first that does not
        here = column < new[:, None]
        ids.scatter_(1, at, torch.where(here, token, ids.gather(1, at)))
        logprobs.scatter_(1, at, torch.where(here, logprob, logprobs.gather(1, at)))
        for stream in streams if counts.passes > before else ():  # the first token comes from the prompt alone
            stream.keep(new)
        asked = (line.free_S[inside] & (at < end) & running[:, None])[:, :-1]
        read_and_true += torch.stack([asked.sum(), (asked & (column[:-1] < true[:, None])).sum()])
        done = done + new
        least, tried = int(done.min()), counts.passes - before  # here a GPU is waited for
        given_up = least < end and _is_time(tried) and not _pays(tried, least, end, _dearer(streams[0]))
        if least >= end or given_up:
            drafted, accepted = read_and_true.tolist()
            counts.drafted, counts.accepted = counts.drafted + drafted, counts.accepted + accepted
            found = ids[:, :end][:, line.free_S], logprobs[:, :end][:, line.free_S]
            return None if given_up else found
        size = window if fixed or tried == 0 else _next_size(true[running], window)
        few = size if fixed else min(size, end - least)
        guessed = (done[:, None] + torch.arange(few - 1, device=ids.device)).clamp(max=end - 1)
        last = ids.gather(1, (done - 1)[:, None])
        read = torch.cat([last, guess.gather(1, guessed)], 1)
        hidden = [stream.read_on(read) for stream in streams]
        counts.passes += 1


def _next_size(true_R: Tensor, window: int) -> int:
    """Tokens of the next pass, where passes of few cost less: where little has come true, little is guessed."""
    return max(2, min(window, 2 + 2 * int(true_R.sum()) // len(true_R)))


def _is_time(tried: int) -> bool:
    """Whether after so many passes it is looked whether a draft pays: seldom, for what was drawn so far would go."""
    times, rest = divmod(tried, TRIED_PASSES)
    return rest == 0 and times.bit_count() == 1


def _dearer(stream: SharedRows) -> float:
    """How many passes of one token one of these takes as long as; 0 where that is not known to be more than one."""
    if stream.recorded is None or stream.recorded.failed:
        return 0.0
    return DEARER if stream.vlm.step is None else DEARER_THAN_COMPILED


def _pays(tried: int, done: int, end: int, dearer: float) -> bool:
    """Whether going on with a draft is sooner done than beginning anew without, by what the slowest row has come to in
    so many passes.
    """
    return (end - done) * dearer * tried <= end * (done - 1)


class _Line:
    """What stands behind a prompt, S tokens: T that are drawn, and between them those that are there by rule.

    `guess_RS` int64 [rows, S] holds guesses of all of them, `free_S` bool [S] says which are drawn. Those by rule
    always come true. `kept_RT` are places among the allowed ids, -1 where one is drawn.
    """

    def __init__(self, how: How, uniform: Any, kept_RT: Tensor | None, draft_RT: Tensor) -> None:
        self.how, self.uniform, self.kept_RT = how, uniform, kept_RT
        drawn, device = how.max_tokens, draft_RT.device
        after: list[Sequence[int]] = [()] * drawn if how.after is None else [*how.after[: drawn - 1], ()]
        rule = [token for ids in after for token in (-1, *ids)]  # -1: drawn
        self.end, self.rule_S = len(rule), torch.tensor(rule, device=device)
        self.free_S = self.rule_S < 0
        self.number_S = self.free_S.long().cumsum(0) - 1
        guess_RT = draft_RT if kept_RT is None else torch.where(kept_RT < 0, draft_RT, kept_RT)
        self.guess_RS = torch.where(self.free_S, guess_RT[:, self.number_S], self.rule_S)
        self.allowed_V = how.distribution.allowed_ids_V.to(device)
        if kept_RT is not None:
            some = torch.where(kept_RT < 0, self.allowed_V[0], kept_RT)
            self.kept_RT = torch.where(kept_RT < 0, -1, how.distribution.positions(some))

    def draw(self, hidden: Sequence[Tensor], vlm: UnifiedVLM, at_RW: Tensor) -> tuple[Tensor, ...]:
        """Tokens and their log-probabilities [rows, window] at some places, each with the noise of its own."""
        how, numbers_RW = self.how, self.number_S[at_RW]
        distribution, head = how.distribution, vlm.head_weight()
        flat = [states.transpose(0, 1).flatten(0, 1) for states in hidden]  # window by window: rows come last in noise
        log_probs = distribution.log_probs(flat[0], head, *flat[1:])
        if how.truncation is not None:
            log_probs = how.truncation.apply(log_probs)
        chosen = invert(log_probs, self.uniform(numbers_RW.T).flatten())
        if self.kept_RT is not None:
            kept = self.kept_RT.gather(1, numbers_RW).T.flatten()
            chosen = torch.where(kept < 0, chosen, kept)
        found = self.allowed_V[chosen], log_probs.gather(-1, chosen[:, None])[:, 0]
        token_RW, logprob_RW = (x.view(at_RW.shape[::-1]).T for x in found)
        return torch.where(self.free_S[at_RW], token_RW, self.rule_S[at_RW]), logprob_RW
