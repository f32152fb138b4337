"""Tiny random checkpoints in the layouts in which models for robots are published, and Emu3 by its own code's names."""

from __future__ import annotations

import base64
import functools
import json
import re
from pathlib import Path
from typing import Any

import torch
from conftest import SENTENCES
from published_families import (
    EMU3_SIZES,
    EMU3_VQ,
    EMU3_WORDS,
    emu3_names,
    emu3_weights,
    lumina,
    weights_of,
    write_checkpoint,
    write_json,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Emu3Config

from rl.models.text_tokenizer import train_text_tokenizer


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


@functools.cache
def emu3_ranks() -> list[bytes]:
    """The 151,643 words of `emu3.tiktoken` in their order: bytes, what is merged of them, words that never occur."""
    told = json.loads(train_text_tokenizer(SENTENCES * 3, 400).backend_tokenizer.to_str())["model"]["merges"]
    merged = ["".join(pair) for pair in told]
    assert all(word.isascii() or word.startswith("Ġ") for word in merged)
    words = [bytes([i]) for i in range(256)] + [word.replace("Ġ", " ").encode() for word in merged]
    return words + [b"\xff" + i.to_bytes(3, "big") for i in range(EMU3_WORDS - len(words))]


def emu3_original(folder: Path, **config: Any) -> Path:
    """`BAAI/Emu3-Gen`, `-Chat`, `-Stage1`: names and files of Emu3's own code, no VQ tokenizer."""
    tensors = emu3_weights(Emu3Config(text_config=EMU3_SIZES, vq_config=EMU3_VQ, vocabulary_map={}))
    words = {
        name.replace("model.text_model.", "model."): tensor for name, tensor in tensors.items() if "vqmodel" not in name
    }
    assert len(words) == 9 * 2 + 3  # 291 with 32 layers
    ids = {"boi": 151852, "bos": 151849, "eof": 151847, "eoi": 151853, "eol": 151846, "eos": 151850, "img": 151851}
    told = {
        "architectures": ["Emu3ForCausalLM"],
        "attention_dropout": 0.1,
        "auto_map": {"AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM"},
        **{f"{name}_token_id": number for name, number in ids.items()},
        **EMU3_SIZES,
        "hidden_act": "silu",
        "image_area": 518400,
        "model_type": "Emu3",
        "pad_token_id": 151643,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 184622,
    }
    write_checkpoint(folder, told | config, words, 3)
    (folder / "modeling_emu3.py").write_text("raise SystemExit('the code of a checkpoint was run')\n")
    lines = [b"%s %d" % (base64.b64encode(word), rank) for rank, word in enumerate(emu3_ranks())]
    (folder / "emu3.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    names = list(emu3_names())
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(names[names.index("<|image token|>") :]) + "\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Emu3Tokenizer", "bos_token": "<|extra_203|>"})
    return folder


def univla(folder: Path) -> Path:
    """`Yuqi1997/UniVLA`: Emu3's layout, its own class, the config of a head for actions that it has not."""
    more: dict[str, Any] = {
        "boa_token_id": 151844,
        "eoa_token_id": 151845,
        "bov": 151854,
        "eov": 184621,
        "action_experts": False,
    }
    head = {"action_dim": 7, "hidden_size": 16, "num_hidden_layers": 2, "vision_loss_weight": 5.0}
    return emu3_original(
        folder,
        architectures=["Emu3MoE"],
        max_position_embeddings=6400,
        action_config=head,
        vision_loss_weight=1.0,
        **more,
    )


def emu3_vision(folder: Path) -> Path:
    """`BAAI/Emu3-VisionTokenizer`: the VQ tokenizer by itself under its own names, its attention in convolutions."""
    folder.mkdir(parents=True)
    found, prefix = {}, "model.vqmodel."
    for name, tensor in emu3_weights(Emu3Config(text_config=EMU3_SIZES, vq_config=EMU3_VQ, vocabulary_map={})).items():
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split(".")
        if parts[-2] in ("q_proj", "k_proj", "v_proj", "out_proj"):
            parts[-2] = "proj_out" if parts[-2] == "out_proj" else parts[-2][0]
            tensor = tensor[..., None, None] if parts[-1] == "weight" else tensor
        own = ".".join(part for part in parts if part not in ("down_block", "up_block")).replace("middle_block", "mid")
        own = own.replace("attn_norm.", "attn_1.norm.")
        found[re.sub(r"attn_norms\.(\d)", r"attn.\1.norm", own)] = tensor.contiguous()
    assert not [name for name in found if "_block." in name or "_proj" in name or "attn_norm" in name]
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    old = {"base_channels": "ch", "channel_multiplier": "ch_mult", "latent_channels": "z_channels"}
    old |= {"double_latent": "double_z"}
    told = {old.get(key, key): value for key, value in EMU3_VQ.items() if key not in ("hidden_size",)}
    told |= {"architectures": ["Emu3VisionVQModel"], "model_type": "Emu3VisionVQ", "dropout": 0.0}
    write_json(folder / "config.json", {k: v for k, v in told.items() if k != "num_attention_heads"})
    return folder
