"""A small base of Liquid's kind from random weights: Gemma's classes, our own words, any VQGAN.

Its prompts are those of the small Chameleon (words first), so that the two families differ in nothing but the model.
Other words and codes than the published model's are told by `rewind.json`, which names the family.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from rl.models.families.chameleon import ChameleonVLM
from rl.models.families.liquid import LiquidVLM
from rl.models.vq import DecoderConfig, VQDecoder


def new_liquid(
    tokenizer: PreTrainedTokenizerFast,
    vq_config: ChameleonVQVAEConfig,
    decoder_config: DecoderConfig | None = None,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    name: str,
    known_words: Sequence[str] | None = None,
    max_positions: int | None = None,
) -> LiquidVLM:
    """A Liquid with random weights over a text tokenizer with Gemma's markers; codes follow the words in its ids."""
    tokens_per_image = (vq_config.resolution // 2 ** (len(vq_config.channel_multiplier) - 1)) ** 2
    config = GemmaConfig(
        vocab_size=len(tokenizer) + vq_config.num_embeddings,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4 // 16 * 16,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_positions or 256 + 4 * tokens_per_image,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vq = (ChameleonVQVAE(vq_config).eval(), VQDecoder(vq_config, decoder_config))
    vlm = LiquidVLM(GemmaForCausalLM(config).eval(), vq, tokenizer, name, known_words)
    vlm.template = ChameleonVLM.template
    return vlm
