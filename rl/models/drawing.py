"""Pictures drawn after prompts: what forward models and GRPO share of the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rl.codes import Codes, by_grid
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.drafting import Counts
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
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
    is the draft where rows are few; GRPO has many and does without.
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
