"""Sentences drawn for pairs of pictures: what an inverse model says, token by token, for who learns from it."""

from __future__ import annotations

from collections.abc import Sequence

from rl.models.distribution import TokenDistribution
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from rl.models.unified import UnifiedVLM
from rl.sentences import Sentence

USUAL_TOKENS = 48
"""The most tokens of a sentence, its end included."""


def sampled_sentences(
    vlm: UnifiedVLM,
    prompts: Sequence[Sequence[int]],
    distribution: TokenDistribution,
    *,
    num_samples: int,
    noise: Noise,
    max_tokens: int = USUAL_TOKENS,
    max_rows: int | None = None,
    first: int = 0,
) -> list[list[Sentence]]:
    """Draw `num_samples` sentences after each prompt (`idm_prompt`) under the active adapter.

    A sentence does not depend on what is drawn beside it. One that has not ended after `max_tokens` is cut off there; a
    model of actions that are vectors says as many numbers as they have, whatever `max_tokens` is.
    """
    vectors = vlm.actions
    stop = vlm.layout.end_text if vectors is None else vectors.stop
    drawn = sample_tokens(
        vlm,
        prompts,
        distribution,
        num_samples=num_samples,
        max_tokens=max_tokens if vectors is None else vectors.most,
        noise=noise,
        stop=stop,
        max_rows=max_rows,
        first=first,
    )
    ids_PGT, logprobs_PGT = drawn.ids_PGT.cpu().numpy(), drawn.logprobs_PGT.cpu().numpy()
    found = []
    for ids_GT, logprobs_GT in zip(ids_PGT, logprobs_PGT, strict=True):
        group = []
        for ids, logprobs in zip(ids_GT, logprobs_GT, strict=True):
            ended = stop is None or stop in ids
            length = list(ids).index(stop) + 1 if stop is not None and ended else len(ids)
            group.append(Sentence(ids[:length], logprobs[:length], vlm.action(ids[:length].tolist()), ended))
        found.append(group)
    return found


def ends_of(vlm: UnifiedVLM) -> list[int]:
    """The ids that a sentence may end with: of actions that are vectors of a fixed length, any."""
    if vlm.actions is None:
        return [vlm.layout.end_text]
    return vlm.action_vocabulary.tolist() if vlm.actions.stop is None else [vlm.actions.stop]
