"""Tiny random checkpoints in the layouts in which models for robots are published, and Emu3 by its own code's names."""

from __future__ import annotations

from pathlib import Path

import torch
from published_families import lumina, weights_of
from torch import Tensor, nn


def action_head(width: int = 8, horizon: int = 5, dimensions: int = 7) -> dict[str, Tensor]:
    """The continuous head of RynnVLA-002: learned queries, a projection, two encoder layers, an MLP with residuals."""

    def make() -> nn.Module:
        head, mlp = nn.Module(), nn.Module()
        head.action_token_embeddings = nn.Embedding(1, horizon * dimensions * 32)
        head.hidden_projection = nn.Linear(32, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        head.transformer_encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        mlp.layer_norm1, mlp.fc1 = nn.LayerNorm(width * dimensions), nn.Linear(width * dimensions, width)
        mlp.fc2 = nn.Linear(width, dimensions)
        head.output_projection = nn.ModuleDict({"model": mlp})
        return head

    found = weights_of(make, 7, torch.bfloat16)
    return {f"action_head.{name}": tensor for name, tensor in found.items()}


def rynnvla(folder: Path) -> Path:
    """`Alibaba-DAMO-Academy/RynnVLA-002`, `VLA_model_256/*`: Lumina's layout and `action_head.*`."""
    return lumina(folder, action_head(), "ChameleonXLLMXForConditionalGeneration_ck_action_head")
