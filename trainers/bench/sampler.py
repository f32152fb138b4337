"""Drawing pictures: our sampler against transformers' `generate`, the same model and the same number of rows.

The baseline keeps a cache too (in parts with long pictures the faster of the one that grows and the static one) and
allows image ids through a logits processor; it gives no log-probabilities, which ours does. transformers' Chameleon
forbids image tokens in its forward, so that the baseline's class leaves this out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from rl.models.distribution import TokenDistribution
from rl.models.noise import Noise
from rl.models.opening import load_base
from rl.models.sampling import sample_tokens
from rl.models.streams import pad_left
from rl.models.unified import UnifiedVLM
from trainers.bench.measure import Size, seconds
from trainers.bench.mid import ACTIONS, mid_base, random_pictures


def ours(size: Size) -> dict[str, Any]:
    vlm, prompts = setting(size)
    return {"seconds": seconds(lambda: draw(vlm, prompts, size), size["repeats"], size.get("warm", 1))}


def baseline(size: Size) -> dict[str, Any]:
    vlm, prompts = setting(size)
    return {"seconds": seconds(lambda: generate(vlm, prompts, size), size["repeats"], size.get("warm", 1))}


def static(size: Size) -> dict[str, Any]:
    """The baseline with room for all tokens from the start, which transformers compiles for on a GPU."""
    vlm, prompts = setting(size)
    return {"seconds": seconds(lambda: generate(vlm, prompts, size, "static"), size["repeats"], size.get("warm", 1))}


def setting(size: Size) -> tuple[UnifiedVLM, list[list[int]]]:
    """The shipped base, or one for pictures of `image_tokens`, and prompts with random sources."""
    vlm = mid_base(size) if "image_tokens" in size else load_base("tabletop-chameleon")
    sources = random_pictures(vlm, size["prompts"])
    return vlm, [vlm.fdm_prompt(ids, ACTIONS[n % len(ACTIONS)]) for n, ids in enumerate(sources)]


def draw(vlm: UnifiedVLM, prompts: list[list[int]], size: Size, tokens: int | None = None) -> Tensor:
    """Image ids int64 [prompts, candidates, K] by our sampler, or only the first so many."""
    distribution = TokenDistribution(vlm.layout.image_ids_V)
    count, length = size["candidates"], tokens or vlm.layout.tokens_per_image
    return sample_tokens(vlm, prompts, distribution, num_samples=count, max_tokens=length, noise=Noise(0)).ids_PGT


@torch.no_grad()
def generate(vlm: UnifiedVLM, prompts: list[list[int]], size: Size, cache: str = "dynamic", **more: Any) -> Tensor:
    """The same by transformers' `generate`, with the cache that it knows by that name; `more` goes to it too."""
    model: Any = vlm.model
    model.__class__ = Unmasked
    ids, mask = pad_left(prompts, vlm.layout.pad, vlm.device)
    drawn = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=vlm.layout.tokens_per_image,
        num_return_sequences=size["candidates"],
        use_cache=True,
        cache_implementation=cache,
        eos_token_id=None,
        pad_token_id=vlm.layout.pad,
        logits_processor=LogitsProcessorList([Only(vlm.layout.image_ids_V, model.config.vocab_size)]),
        **more,
    )
    found: Tensor = drawn[:, ids.shape[1] :].view(len(prompts), size["candidates"], -1)
    return found


class Only(LogitsProcessor):
    """Forbids all but some ids."""

    def __init__(self, allowed_ids_V: Tensor, vocabulary: int) -> None:
        self.forbidden = torch.ones(vocabulary, dtype=torch.bool)
        self.forbidden[allowed_ids_V] = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.forbidden = self.forbidden.to(scores.device)  # once
        return scores.masked_fill(self.forbidden, float("-inf"))


class Unmasked(ChameleonForConditionalGeneration):
    """transformers' Chameleon with the head's logits as they are."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, logits_to_keep: int = 0, pixel_values: None = None, **settings: Any
    ) -> CausalLMOutputWithPast:
        settings.pop("return_dict", None)
        output = self.model(input_ids=input_ids, **settings)
        hidden = output.last_hidden_state[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=output.past_key_values)
