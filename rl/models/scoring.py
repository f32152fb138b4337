"""Log-likelihood of given tokens after given prompts: the other side of the sampler, through the same distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.checks import check_whole
from rl.models.costs import LOGITS_AT_ONCE, SHARED_FROM, USUAL_ROWS
from rl.models.distribution import TokenDistribution
from rl.models.memory import Portions, rows_that_fit, scoring_cost
from rl.models.partial_attention import chunks
from rl.models.streams import PrefixCache, Stream, shares_prompts
from rl.models.unified import UnifiedVLM

Ids = Sequence[Sequence[int]]


def span_log_probs(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    spans: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    *,
    unconditional: Sequence[Sequence[Sequence[int]]] | None = None,
    max_rows: int | None = None,
    free: Sequence[bool] | None = None,
    prefixes: PrefixCache | None = None,
) -> list[Tensor]:
    """Log-probability of each token of span i after prompt i, float32 [len(span)] each, under the active adapter.

    With `free` (`PictureGrammar.free`, for spans of one length) only the tokens that it names are scored: the others
    stand there by rule. A guided distribution needs the `unconditional` prompts, a list for each free prompt.

    Token t of a span is predicted at the position before it: the first one by the last token of the prompt.
    Gradients flow unless the caller disables them. Without gradients, a prompt that stands there several times (many
    actions for one pair of pictures, many targets of one source) is read once, and equal pairs of prompt and span are
    scored once; long ones that another call has read are found in `prefixes`; without it, what long prompts that differ
    begin with alike (the source of several targets) is read once. At most `max_rows` rows are read at once, or as many
    as fit.
    """
    max_rows = vlm.max_rows if max_rows is None else max_rows
    if max_rows is not None:
        check_whole("max_rows", max_rows, least=1)
    if not len(prompts):
        return []
    alone = not torch.is_grad_enabled() and not distribution.guided
    if alone:
        pairs = [(tuple(prompt), tuple(span)) for prompt, span in zip(prompts, spans, strict=True)]
        distinct = list(dict.fromkeys(pairs))
        if len(distinct) < len(pairs):  # a group's equal pictures
            scored = span_log_probs(
                vlm,
                [prompt for prompt, _ in distinct],
                [span for _, span in distinct],
                distribution,
                max_rows=max_rows,
                free=free,
                prefixes=prefixes,
            )
            scores = dict(zip(distinct, scored, strict=True))
            return [scores[pair] for pair in pairs]
    places: Ids = [[t for t in range(len(span)) if free is None or free[t]] for span in spans]
    share = alone and shares_prompts(vlm, prompts)
    if share and prefixes is None:
        prompts, spans, places = _behind_what_is_alike(prompts, spans, places)
    reading = _Reading(vlm, distribution, prompts, spans, places, unconditional or (), max_rows, prefixes)
    found: dict[int, Tensor] = {}
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(number)
    if share:
        by_count: dict[int, list[list[int]]] = {}
        for numbers in rows_of.values():  # prompts with equally many spans make a rectangle
            by_count.setdefault(len(numbers), []).append(numbers)
        for count, groups in by_count.items():
            once = count > 1 or prefixes is not None
            found |= reading.shared(groups) if once else reading.whole([n for (n,) in groups])
    elif alone and 2 * len(rows_of) <= len(prompts):
        found = reading.copied([n for numbers in rows_of.values() for n in numbers])
    else:
        found = reading.whole(range(len(prompts)))
    return [found[number] for number in range(len(prompts))]


def _behind_what_is_alike(prompts: Ids, spans: Ids, places: Ids) -> tuple[Ids, Ids, Ids]:
    """Prompts, spans and scored places; of different prompts, what differs is put before their spans.

    So pairs of one source with many targets share the source as equal prompts share all. Prompts of which some stand
    there several times are left as they are: a pair is then read once for all its actions.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt[:SHARED_FROM]), []).append(number)
    if len(groups) == len(prompts) or len({tuple(prompt) for prompt in prompts}) < len(prompts):
        return prompts, spans, places
    begins, rests, shifted = list(prompts), list(spans), list(places)
    for begin, numbers in groups.items():
        if len(begin) < SHARED_FROM or len(numbers) == 1:
            continue
        each = [list(prompts[n]) for n in numbers]
        first, last = min(each), max(each)  # in the order of words in a dictionary: all begin as these two do
        alike = next((t for t, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        for n, prompt in zip(numbers, each, strict=True):
            begins[n], rests[n] = prompt[:alike], [*prompt[alike:], *spans[n]]
            shifted[n] = [len(prompt) - alike + t for t in places[n]]
    return begins, rests, shifted


@dataclass(frozen=True)
class _Reading:
    """Prompts, spans after them and the `places` in each span that are scored."""

    vlm: UnifiedVLM
    distribution: TokenDistribution
    prompts: Ids
    spans: Ids
    places: Ids
    unconditional: Sequence[Ids]
    max_rows: int | None
    prefixes: PrefixCache | None = None

    def whole(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Log-probabilities by number: prompt and span are read as a row of their own."""
        found: dict[int, Tensor] = {}

        def work(part: range, _: range) -> None:
            these = [numbers[n] for n in part]
            streams = [self.prompts, *(self.unconditional if self.distribution.guided else ())]
            hidden = [self._whole_hidden([stream[n] for n in these], these) for stream in streams]
            found.update(self._scores(these, hidden))

        self._portions(numbers, 1, None).over(range(len(numbers)), range(1), work)
        return found

    def copied(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        """The same of spans ordered by their prompts: each prompt is read once and copied to its rows."""
        found: dict[int, Tensor] = {}
        prefilled: dict[tuple[tuple[int, ...], ...], Stream] = {}

        def work(part: range, _: range) -> None:
            these = [numbers[n] for n in part]
            order: dict[tuple[int, ...], int] = {}
            which = [order.setdefault(tuple(self.prompts[n]), len(order)) for n in these]
            if (prompts := tuple(order)) not in prefilled:  # with few rows at once, a prompt has several parts
                prefilled.clear()
                prefilled[prompts] = Stream.prefill(self.vlm, prompts)
            ids = self._ids(these)
            rows = prefilled[prompts].rows(torch.tensor(which, device=self.vlm.device), ids.shape[1])
            found.update(self._scores(these, [rows.read(ids)[self._here(these)]]))

        self._portions(numbers, 1, False).over(range(len(numbers)), range(1), work)
        return found

    def shared(self, groups: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        """The same of groups of equally many spans, a prompt a group: each is read once and kept once."""
        found: dict[int, Tensor] = {}
        prefilled: dict[range, Stream] = {}
        prefill = Stream.prefill_long if self.prefixes is None else self.prefixes.read

        def work(part: range, few: range) -> None:
            if part not in prefilled:
                prefilled.clear()
                prefilled[part] = prefill(self.vlm, [self.prompts[groups[n][0]] for n in part])
            these = [groups[n][number] for n in part for number in few]
            rows = prefilled[part].shared_rows(len(few))
            found.update(self._scores(these, [rows.read(self._ids(these))[self._here(these)]]))

        numbers = [number for group in groups for number in group]
        self._portions(numbers, len(groups[0]), True).over(range(len(groups)), range(len(groups[0])), work)
        return found

    def _portions(self, numbers: Sequence[int], each: int, shared: bool | None) -> Portions:
        prompt, span = (max(len(x[n]) for n in numbers) for x in (self.prompts, self.spans))
        cost = scoring_cost(self.vlm, prompt, span, shared)
        usual = USUAL_ROWS if shared is None or span >= SHARED_FROM else 4 * USUAL_ROWS
        return Portions(rows_that_fit(cost, each, self.vlm.device, self.max_rows, usual))

    def _ids(self, these: Sequence[int]) -> Tensor:
        """Spans without their last token, which predicts nothing here; padded on the right, where nothing sees it."""
        width = max(len(self.spans[n]) for n in these)
        pad = self.vlm.layout.pad
        ids = torch.tensor([[*self.spans[n], *[pad] * (width - len(self.spans[n]))][: width - 1] for n in these])
        return ids.view(len(these), width - 1).to(self.vlm.device)

    def _here(self, these: Sequence[int]) -> Tensor:
        """Where the scored tokens are predicted, bool [rows, T]."""
        here = torch.zeros(len(these), max(len(self.spans[n]) for n in these), dtype=torch.bool)
        for row, n in enumerate(these):
            here[row, self.places[n]] = True
        return here.to(self.vlm.device)

    def _scores(self, these: Sequence[int], hidden: Sequence[Tensor]) -> dict[int, Tensor]:
        """Log-probabilities of the scored tokens, from the states that predict them: one a place, row by row."""
        ids = torch.tensor([self.spans[n][t] for n in these for t in self.places[n]], device=hidden[0].device)
        positions, over = self.distribution.positions(ids)[:, None], self.distribution.over_rows
        rows = self.distribution.rows(self.vlm.head_weight())
        few = max(1, LOGITS_AT_ONCE // len(self.distribution.allowed_ids_V))
        parts = [slice(None)] if torch.is_grad_enabled() else chunks(len(ids), few)  # a graph would keep all of them
        found = []
        for n in parts:
            log_probs = over.log_probs(hidden[0][n], rows, *(free[n] for free in hidden[1:]))
            found.append(log_probs.gather(-1, positions[n])[:, 0])
        flat = torch.cat(found)
        return dict(zip(these, flat.split([len(self.places[n]) for n in these]), strict=True))

    def _whole_hidden(self, prompts: Sequence[Sequence[int]], these: Sequence[int]) -> Tensor:
        """Hidden states that predict the spans' tokens at their places, one after the other: float [places, D]."""
        spans, places = [self.spans[n] for n in these], [self.places[n] for n in these]
        sequences = [[*prompt, *span] for prompt, span in zip(prompts, spans, strict=True)]
        width = max(len(sequence) for sequence in sequences)
        # Padding stands on the right, where causal attention cannot see it, so no mask is needed.
        ids = torch.tensor([sequence + [self.vlm.layout.pad] * (width - len(sequence)) for sequence in sequences])
        hidden: Tensor = self.vlm.hidden_states(ids.to(self.vlm.device), use_cache=False).last_hidden_state
        rows = [
            row * width + len(prompt) - 1 + t
            for row, (prompt, here) in enumerate(zip(prompts, places, strict=True))
            for t in here
        ]
        return hidden.flatten(0, 1)[torch.tensor(rows, device=hidden.device)]
