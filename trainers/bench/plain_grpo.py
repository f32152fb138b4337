"""GRPO of a forward model by TRL alone, as its documentation trains a text model: the baseline of `grpo_step_speedup`.

A picture is a text of tokens for it. `generate` draws them in one batch with a cache, words and markers suppressed. The
reward function decodes the pictures that were drawn, encodes them again, since the inverse model is another model that
takes pictures, and asks it in a second forward, a batch at a time and without gradients, for the action's likelihood.
The reference is a third model. With what is quick: LoRA on the policy alone, no old log-probabilities, one optimizer
step a batch, TRL's tiled head, no gradient checkpointing.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from rl.models.families.chameleon import image_token_name
from rl.models.unified import UnifiedVLM
from trainers.bench.sampler import Unmasked
from trainers.bench.scorer import one_row_each

CACHE = "static" if torch.cuda.is_available() else "dynamic"
"""Of `generate`: transformers compiles for the static one on a GPU; on a CPU it is slower (`sampler_256` has both)."""


def tokenizer_with_pictures(vlm: UnifiedVLM) -> PreTrainedTokenizerFast:
    """The base's tokenizer with a token for each code, under the id that the model has for it."""
    tokenizer: PreTrainedTokenizerFast = copy.deepcopy(vlm.tokenizer)
    codes = range(len(vlm.layout.image_ids_V))
    tokenizer.add_tokens([AddedToken(image_token_name(code), normalized=False) for code in codes])
    return tokenizer


def rows(tokenizer: PreTrainedTokenizerFast, vlm: UnifiedVLM, sources: list[list[int]], actions: list[str]) -> Dataset:
    """Prompts as texts; source and action as columns for the reward."""
    begin = tokenizer.bos_token
    prompts = [
        # the tokenizer puts a space before the first word
        tokenizer.decode(vlm.fdm_prompt(ids, words)).replace(f"{begin} ", begin)
        for ids, words in zip(sources, actions, strict=True)
    ]
    return Dataset.from_dict({"prompt": prompts, "source": sources, "action": actions})


class InverseReward:
    """Mean log-probability a token of the action under an inverse model, of pictures decoded and encoded again."""

    __name__ = "inverse_reward"

    def __init__(self, policy: UnifiedVLM, inverse: UnifiedVLM) -> None:
        self.policy, self.inverse = policy, inverse

    def __call__(
        self, completion_ids: list[list[int]], source: list[list[int]], action: list[str], **_: Any
    ) -> list[float]:
        drawn = self.policy.decode(torch.tensor(completion_ids).numpy())
        targets = self.inverse.encode(list(drawn)).tolist()
        prompts = [self.inverse.idm_prompt(a, b) for a, b in zip(source, targets, strict=True)]
        spans = [self.inverse.action_ids(words) for words in action]
        return [float(log_probs.mean()) for log_probs in one_row_each(self.inverse, prompts, spans)]


def plain_trainer(
    models: tuple[UnifiedVLM, UnifiedVLM, UnifiedVLM],
    sources: list[list[int]],
    actions: list[str],
    settings: dict[str, Any],
    lora: LoraConfig,
) -> GRPOTrainer:
    """TRL's trainer of the first model; reference and inverse model are the others.

    Args:
        models: policy, reference, inverse model.
        sources: image ids of the source of each prompt.
        actions: of each prompt.
        settings: for `GRPOConfig`.
        lora: of the policy.
    """
    policy, reference, inverse = models
    for vlm in models[:2]:
        vlm.model.__class__ = Unmasked
    tokenizer = tokenizer_with_pictures(policy)
    codes = set(policy.layout.image_ids_V.tolist())
    vocabulary: int = policy.model.config.vocab_size  # type: ignore[union-attr, assignment]
    no_codes = [token for token in range(vocabulary) if token not in codes]
    arguments = GRPOConfig(
        **settings,
        max_completion_length=policy.layout.tokens_per_image,
        cache_implementation=CACHE,
        generation_kwargs={"suppress_tokens": no_codes},
    )
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=InverseReward(policy, inverse),  # type: ignore[arg-type]
        args=arguments,
        train_dataset=rows(tokenizer, policy, sources, actions),
        processing_class=tokenizer,
        peft_config=lora,
    )
    frozen: Any = reference.model.eval().requires_grad_(False)
    add_fused_lm_head(frozen, temperature=arguments.temperature)
    trainer.ref_model = frozen.to(trainer.accelerator.device)
    return trainer
