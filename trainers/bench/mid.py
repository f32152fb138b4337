"""A random Chameleon as large as a test of speed needs: hidden 256, 4 layers, 8,192 codes, any number of tokens."""

from __future__ import annotations

import math

import torch
from transformers import ChameleonVQVAEConfig

from rl.models.families.chameleon import ChameleonVLM, new_chameleon
from rl.models.text_tokenizer import train_text_tokenizer
from rl.models.unified import UnifiedVLM
from trainers.bench.measure import Size

ACTIONS = ("move the red circle left", "paint the blue star green", "remove all rings")
CELL = 16
"""Pixels of a side that become one token, with five levels of the image tokenizer."""


def mid_base(size: Size) -> ChameleonVLM:
    """The base for pictures of `size["image_tokens"]` tokens; `hidden` and `layers` are smaller in a smoke test."""
    torch.manual_seed(0)
    vq = ChameleonVQVAEConfig(
        resolution=CELL * math.isqrt(size["image_tokens"]),
        num_embeddings=size.get("codes", 8192),
        embed_dim=32,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        attn_type="none",
    )
    tokenizer = train_text_tokenizer(list(ACTIONS) * 50, 400)
    hidden, layers = size.get("hidden", 256), size.get("layers", 4)
    vlm = new_chameleon(tokenizer, vq, hidden_size=hidden, num_layers=layers, num_heads=4, name="mid")
    if torch.cuda.is_available():
        vlm.model.to("cuda")
    return vlm


def random_pictures(vlm: UnifiedVLM, count: int) -> list[list[int]]:
    """Ids of pictures that nobody has seen."""
    ids = vlm.layout.image_ids_V
    return ids[torch.randint(len(ids), (count, vlm.layout.tokens_per_image))].tolist()  # type: ignore[no-any-return]
