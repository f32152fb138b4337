"""Naming pairs of pictures and scoring the words: the sampler's own log-probabilities against `generate` and a second
pass.

Greedy sentences of one length, by a random base for pictures of `image_tokens`. Its sentences are not spelt as a
tokenizer would spell their text, which a trained model's are, so that tokens are measured and no texts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from rl.models.distribution import TokenDistribution
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from rl.models.streams import pad_left
from rl.models.unified import UnifiedVLM
from trainers.bench.measure import Size, seconds
from trainers.bench.mid import mid_base, random_pictures
from trainers.bench.sampler import Only, Unmasked
from trainers.bench.scorer import one_row_each


def ours(size: Size) -> dict[str, Any]:
    vlm, prompts = setting(size)
    return {"seconds": seconds(lambda: name(vlm, prompts, size["words"]), size["repeats"])}


def baseline(size: Size) -> dict[str, Any]:
    vlm, prompts = setting(size)
    return {"seconds": seconds(lambda: name_and_score(vlm, prompts, size["words"]), size["repeats"])}


def static(size: Size) -> dict[str, Any]:
    """The baseline with room for all tokens from the start."""
    vlm, prompts = setting(size)
    return {"seconds": seconds(lambda: name_and_score(vlm, prompts, size["words"], "static"), size["repeats"])}


def setting(size: Size) -> tuple[UnifiedVLM, list[list[int]]]:
    """A base and prompts about pairs of pictures that nobody has seen."""
    vlm = mid_base(size)
    pictures = random_pictures(vlm, 2 * size["pairs"])
    return vlm, [vlm.idm_prompt(a, b) for a, b in zip(pictures[::2], pictures[1::2], strict=True)]


def name(vlm: UnifiedVLM, prompts: list[list[int]], tokens: int) -> tuple[Tensor, Tensor]:
    """Ids int64 [pairs, tokens] and the log-likelihoods [pairs] of them."""
    distribution = TokenDistribution(vlm.layout.text_ids_V, temperature=0.0)
    drawn = sample_tokens(
        vlm, prompts, distribution, num_samples=1, max_tokens=tokens, noise=Noise(), stop=vlm.layout.pad, plain=True
    )
    return drawn.ids_PGT[:, 0], drawn.logprobs_PGT[:, 0].sum(-1)


@torch.no_grad()
def name_and_score(
    vlm: UnifiedVLM, prompts: list[list[int]], tokens: int, cache: str = "dynamic"
) -> tuple[Tensor, Tensor]:
    """The same by transformers' `generate`, batched, and a batched scoring pass."""
    model: Any = vlm.model
    model.__class__ = Unmasked
    ids, mask = pad_left(prompts, vlm.layout.pad, vlm.device)
    drawn = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=tokens,
        use_cache=True,
        cache_implementation=cache,
        eos_token_id=None,
        pad_token_id=vlm.layout.pad,
        logits_processor=LogitsProcessorList([Only(vlm.layout.text_ids_V, model.config.vocab_size)]),
    )[:, ids.shape[1] :]
    scores = one_row_each(vlm, prompts, drawn.tolist())
    return drawn, torch.stack([one.sum() for one in scores])
