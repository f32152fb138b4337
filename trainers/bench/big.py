"""A random Chameleon of the published shape, made where it will stand: nothing of it is ever in the host's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

from rl.models.families.chameleon import ChameleonVLM, image_token_name
from rl.models.text_tokenizer import train_text_tokenizer
from rl.models.vq import VQDecoder
from trainers.bench.measure import Size
from trainers.bench.mid import ACTIONS, CELL
from trainers.plan.shapes import Shape

SEVEN = {"hidden": 4096, "intermediate": 11008, "layers": 32, "heads": 32, "vocabulary": 65536, "codes": 8192}
"""The decoder of `chameleon-7b` in `trainers.plan.shapes`."""
SEVEN |= {"image_tokens": 1024, "vq_channels": 128, "vq_blocks": 2}
"""Its image tokenizer: transformers' defaults."""


def big_base(size: Size, device: str | None = None) -> ChameleonVLM:
    """The base in bfloat16, its image tokenizer in float32, on a device; None is the GPU if there is one."""
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(list(ACTIONS) * 50, 400)
    vocabulary = dict(tokenizer.get_vocab())
    first = max(vocabulary.values()) + 1
    vocabulary |= {image_token_name(code): first + code for code in range(size["codes"])}
    vq = ChameleonVQVAEConfig(
        resolution=CELL * math.isqrt(size["image_tokens"]),
        num_embeddings=size["codes"],
        base_channels=size["vq_channels"],
        num_res_blocks=size["vq_blocks"],
    )
    config = ChameleonConfig(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        intermediate_size=size["intermediate"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"],
        max_position_embeddings=256 + 4 * size["image_tokens"],
        vocabulary_map=vocabulary,
        vq_config=vq.to_dict(),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")):
        with _default(torch.bfloat16):
            model = ChameleonForConditionalGeneration(config).eval()
        model.model.vqmodel.float()
        decoder = VQDecoder(config.vq_config)
    return ChameleonVLM(model, decoder, tokenizer, "random")


def shape_of(size: Size) -> Shape:
    """The same for the arithmetic of `plan.py`."""
    heads = size["heads"]
    return Shape(
        "random",
        "this benchmark",
        *(size["hidden"], size["intermediate"], size["layers"], heads, heads, size["hidden"] // heads),
        *(size["vocabulary"], size["codes"], size["image_tokens"]),
        qk_norm=True,
        pixels=size["image_tokens"] * 16**2,
    )


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
