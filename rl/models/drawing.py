"""Pictures and sentences drawn after prompts: what the roles and GRPO share of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rl.codes import Codes, by_grid
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.drafting import Counts
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from rl.models.scoring import span_log_probs
from rl.models.streams import PrefixCache
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate


def sampled_pictures(
    vlm: UnifiedVLM,
    sources: Sequence[Codes],
    actions: Sequence[str],
    distribution: TokenDistribution,
    *,
    num_samples: int,
    noise: Noise,
    truncation: Truncation | None = None,
    max_rows: int | None = None,
    first: int | Sequence[int] = 0,
    kept: Sequence[np.ndarray] | None = None,
    counts: Counts | None = None,
) -> list[list[Candidate]]:
    """Draw `num_samples` targets of each source and action under the active adapter, in the source's size.

    Sources of one size are drawn together; a candidate does not depend on what is drawn beside it. The other arguments
    are those of `sample_tokens`, `kept` int64 [K] a source. With `counts`, to which it adds, the source
    is the draft where rows are few; without, nothing is guessed (GRPO, usually of many rows, but for `--draft true`).
    """
    found: dict[int, list[Candidate]] = {}
    count = distribution.free_prompts
    for grid, numbers in by_grid(sources).items():
        drawn = sample_tokens(
            vlm,
            [vlm.fdm_prompt(sources[n], actions[n]) for n in numbers],
            distribution,
            num_samples=num_samples,
            max_tokens=grid.codes,
            noise=noise,
            unconditional=list(zip(*(vlm.free_prompts(sources[n], count) for n in numbers), strict=True)),
            truncation=truncation,
            max_rows=max_rows,
            first=first if isinstance(first, int) else [first[n] for n in numbers],
            kept_PT=None if kept is None else torch.from_numpy(np.stack([kept[n] for n in numbers])),
            after=vlm.layout.grammar.of(grid).after,
            draft_PT=None if counts is None else torch.tensor([sources[n] for n in numbers]),
        )
        if counts is not None:
            counts.add(drawn.counts)
        groups = zip(drawn.ids_PGT.cpu().numpy(), drawn.logprobs_PGT.cpu().numpy(), strict=True)
        found |= {
            n: [Candidate(ids, logprobs, vlm, grid) for ids, logprobs in zip(*group, strict=True)]
            for n, group in zip(numbers, groups, strict=True)
        }
    return [found[n] for n in range(len(sources))]


class Said(NamedTuple):
    """What an inverse model has said of a pair of pictures, and the log-likelihood of that (nats, end included).

    0 where it has said nothing.
    """

    text: str
    logprob: float


def drawn_sentences(
    vlm: UnifiedVLM,
    sources: Sequence[Codes],
    targets: Sequence[Codes],
    *,
    num_samples: int,
    max_tokens: int,
    temperature: float,
    noise: Noise,
    max_rows: int | None = None,
    scored: bool = True,
    prefixes: PrefixCache | None = None,
) -> list[list[Said]]:
    """Actions named by the active adapter, `num_samples` a pair of pictures, with their log-likelihoods.

    Those are at temperature 1, whatever the sentences are drawn at: the sampler's own, which is what scoring the
    sentence gives, so that a pair is read once. Only where other tokens were drawn than those that the text is written
    with (`action_ids`; also where its end was not reached) it is scored by itself; not `scored`, not at all. Behind
    long prompts that reads no pair again, and what is left in `prefixes` serves the caller's next question, too.
    """
    prefixes = PrefixCache() if prefixes is None and scored else prefixes
    vectors = vlm.actions
    prompts = [vlm.idm_prompt(a, b) for a, b in zip(sources, targets, strict=True)]
    drawn = sample_tokens(
        vlm,
        prompts,
        TokenDistribution(vlm.action_vocabulary, temperature),
        num_samples=num_samples,
        max_tokens=max_tokens if vectors is None else vectors.most,
        noise=noise,
        stop=vlm.layout.end_text if vectors is None else vectors.stop,
        max_rows=max_rows,
        plain=scored,
        prefixes=prefixes,
    )
    ids, sums = drawn.ids_PGT.tolist(), drawn.logprobs_PGT.sum(-1).tolist()
    texts = [[vlm.action(row) for row in rows] for rows in ids]
    if not scored:
        return [[Said(text, 0.0) for text in group] for group in texts]
    again: list[tuple[int, int]] = []
    spans: list[list[int]] = []
    for pair, group in enumerate(texts):
        for number, text in enumerate(group):
            span = vlm.action_ids(text) if text else []
            row = ids[pair][number]
            if not text:
                sums[pair][number] = 0.0
            elif row[: len(span)] != span or any(token != vlm.layout.pad for token in row[len(span) :]):
                again.append((pair, number))
                spans.append(span)
    found = span_log_probs(
        vlm,
        [prompts[pair] for pair, _ in again],
        spans,
        TokenDistribution(vlm.action_vocabulary),
        max_rows=max_rows,
        prefixes=prefixes,
    )
    for (pair, number), log_probs in zip(again, found, strict=True):
        sums[pair][number] = float(log_probs.sum())
    return [list(map(Said, *group)) for group in zip(texts, sums, strict=True)]
