"""Tiny random checkpoints in the layouts in which Lumina-mGPT, Liquid, Emu3 and their VQ tokenizers are published.

File names, key names and their number per block, config fields (wrong ones too), the numbering of the vocabulary and
the types of the tensors are the published ones; widths, depths, the picture's size and most words are not.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import SENTENCES
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
)

from rl.models.text_tokenizer import train_text_tokenizer
from rl.models.vq import VQDecoder
from rl.models.vq_files import vq_config_of

CODES, FIRST_CODE, FIRST_WORD = 8192, 4, 16384
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
VQ_SIZES = {  # as taming and Lumina name them
    "ch": 32,
    "ch_mult": [1, 1, 2, 2, 4],
    "n_embed": CODES,
    "out_ch": 3,
    "z_channels": 32,
    "double_z": False,
    "embed_dim": 32,
    "resolution": 64,
    "in_channels": 3,
    "num_res_blocks": 2,
    "dropout": 0.0,
    "attn_resolutions": [],
}
EMU3_WORDS, EMU3_CODES = 151_643, 32_768


def normal(shape: Sequence[int], generator: torch.Generator, name: str) -> Tensor:
    """Weights under which activations keep their size; norms near one; the statistics of batch norms."""
    noise = torch.randn(*shape, generator=generator)
    if name.endswith("running_var"):
        return noise.abs() + 0.5
    if "norm" in name:
        return noise * 0.2 + ("weight" in name)
    if "embed" in name or "lm_head" in name:
        return noise
    return noise / (noise[0].numel() ** 0.5 if noise.dim() > 1 else 10)


def weights_of(make: Callable[[], nn.Module], seed: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Random tensors under the names and with the shapes of a module's state."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = make().state_dict()
    return {
        name: normal(t.shape, generator, name).to(dtype or t.dtype) if t.is_floating_point() else torch.tensor(7)
        for name, t in state.items()
    }


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int) -> Path:
    """A sharded checkpoint as transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    names, where = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    write_json(folder / "config.json", config)
    return folder


def tokenizer_json(specials: dict[str, int], first_word: int, fill_up_to: int = 0, spaced: bool = False) -> str:
    """A byte-level tokenizer.json: special names with their ids, and words from an id on (with fillers up to one)."""
    found = json.loads(train_text_tokenizer(SENTENCES * 3, 300).backend_tokenizer.to_str())
    words = [w for w in found["model"]["vocab"] if not (w.startswith("<") and len(w) > 1)]
    vocabulary = {word: first_word + i for i, word in enumerate(words)}
    vocabulary |= {f"filler{i}": i for i in range(first_word + len(words), fill_up_to)}
    if first_word:  # special names stand below the words: then they are in the model too
        vocabulary = specials | vocabulary
    found["model"]["vocab"] = vocabulary
    found["added_tokens"] = [{"id": i, "content": name, **PLAIN} for name, i in specials.items()]
    if not spaced:
        found["normalizer"] = None
    return json.dumps(found)


def write_tokenizer(folder: Path, text: str, specials: dict[str, int], named: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(text)
    added = {str(i): {"content": name, **PLAIN} for name, i in specials.items()}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **named})
    markers = {key: value for key, value in named.items() if key in ("bos_token", "eos_token", "pad_token")}
    write_json(folder / "special_tokens_map.json", markers)


@functools.cache
def vqgan_weights(codes: int = CODES) -> dict[str, Tensor]:
    """Encoder half and decoder with taming's names, float32."""
    config = ChameleonVQVAEConfig(**vq_config_of(VQ_SIZES | {"n_embed": codes}))
    encoder, decoder = weights_of(lambda: ChameleonVQVAE(config), 0), weights_of(lambda: VQDecoder(config), 1)
    return encoder | {f"decoder.{name}": tensor for name, tensor in decoder.items()}


def vqgan(folder: Path, codes: int = CODES) -> Path:
    """Meta's `vqgan.ckpt` in the layout of taming-transformers, its discriminator included, and `vqgan.yaml`."""
    folder.mkdir(parents=True)
    state = OrderedDict(vqgan_weights(codes)) | {"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    torch.save({"state_dict": OrderedDict(state)}, folder / "vqgan.ckpt")
    sizes = {key: value for key, value in VQ_SIZES.items() if key not in ("n_embed", "embed_dim")}
    params = {"ckpt_path": None, "ddconfig": sizes, "embed_dim": 32, "n_embed": codes, "lossconfig": {"target": "x.L"}}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": "x.VQModel", "params": params}}))
    return folder


@functools.cache
def chameleon_names() -> dict[str, int]:
    """The 16,384 special names below the words."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": 8196, "<racm3:break>": 8197}
    letters = {
        "IMGIMG" + "".join(chr(65 + int(d)) for d in str(code)) + "Z": FIRST_CODE + code for code in range(CODES)
    }
    names |= letters | {f"<reserved{number - 4:05d}>": number for number in range(8198, FIRST_WORD)}
    names["<image>"] = names.pop("<reserved08707>")
    return dict(sorted(names.items(), key=lambda item: item[1]))


def lumina(
    folder: Path, heads: dict[str, Tensor] | None = None, kind: str = "ChameleonXLLMXForConditionalGeneration"
) -> Path:
    """`Alpha-VLLM/Lumina-mGPT-7B-*`: the language model alone, norms of queries and keys once for all heads.

    `heads` are further tensors, as the robot models have them that stand on it.
    """
    text = tokenizer_json(chameleon_names(), FIRST_WORD, spaced=True)
    words = json.loads(text)["model"]["vocab"]
    config = {
        "architectures": [kind],
        "bos_token_id": 1,  # <pad>
        "dropout": 0.05,
        "eos_token_id": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "mask_image_logits": False,
        "max_position_embeddings": 4096,
        "model_parallel_size": 1,
        "model_type": "chameleon",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rope_theta": 10000.0,
        "swin_norm": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": len(words),
        "vocabulary_map": words,
        "vq_config": {"model_type": "chameleon_vqgan", **VQ_SIZES},
        "z_loss_weight": 1e-5,
    }
    made = ChameleonConfig(**{**config, "vq_config": {}})
    tensors = weights_of(lambda: ChameleonForConditionalGeneration(made), 2, torch.bfloat16)
    tensors = {
        name: t[:1] if name.split(".")[-2] in ("q_norm", "k_norm") else t
        for name, t in tensors.items()
        if ".vqmodel." not in name
    }
    assert len(tensors) == 13 * 2 + 3  # 419 with 32 layers
    write_checkpoint(folder, config, tensors | (heads or {}), 2)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_tokenizer(folder, text, chameleon_names(), named | {"tokenizer_class": "LlamaTokenizer"})
    return folder


def liquid(folder: Path, words: int = 256_000) -> Path:
    """`Junfeng5/Liquid_V1_7B`: a Gemma with longer vocabulary, tied head, nameless codes, no VQ tokenizer."""
    config = {
        "architectures": ["GemmaForCausalLM"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "head_dim": 8,
        "hidden_act": "gelu",
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 8192,
        "model_type": "gemma",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "vocab_size": words + CODES,
    }
    tensors = weights_of(lambda: GemmaForCausalLM(GemmaConfig(**config)), 3, torch.bfloat16)
    del tensors["lm_head.weight"]
    assert len(tensors) == 9 * 2 + 2
    write_checkpoint(folder, config, tensors, 2)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<boi>", "<eoi>", "<unconditional>"]
    names += [f"<unused{i}>" for i in range(3, 99)] + ["<start_of_turn>", "<end_of_turn>"]
    specials = {name: i for i, name in enumerate(names)}
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    text = tokenizer_json(specials, len(names))
    write_tokenizer(folder, text, specials, named | {"tokenizer_class": "GemmaTokenizer"})
    return folder


@functools.cache
def emu3_names() -> dict[str, int]:
    """Special names behind the words, at their published ids."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", *(f"<|extra_{i}|>" for i in range(1, 205))]
    names += ["<|image token|>", "<|image start|>", "<|image end|>"]
    names += [f"<|visual token {code:06d}|>" for code in range(EMU3_CODES)]
    return {name: EMU3_WORDS + i for i, name in enumerate(names)}


EMU3_VQ = {
    "model_type": "emu3_vqgan",
    "attn_resolutions": [3],
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 2],
    "codebook_size": EMU3_CODES,
    "double_latent": False,
    "embed_dim": 4,
    "hidden_size": 64,  # base_channels x the last multiplier
    "in_channels": 3,
    "latent_channels": 4,
    "num_attention_heads": 1,
    "num_res_blocks": 1,
    "out_channels": 3,
    "temporal_downsample_factor": 4,
}


EMU3_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 9216,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
}


def emu3_weights(config: Emu3Config) -> dict[str, Tensor]:
    """Of the language model and of the VQ tokenizer, under the names of transformers' classes."""
    tensors = weights_of(lambda: Emu3ForConditionalGeneration(config), 4)
    tensors["model.vqmodel.quantize.embedding.weight"] *= 0.04  # in reach of the latents
    return tensors


def emu3(folder: Path) -> Path:
    """`BAAI/Emu3-Gen-hf`: float32, keys of the time of its conversion, whole VQ tokenizer, little in `text_config`."""
    text = tokenizer_json(emu3_names(), 0, EMU3_WORDS)
    vocabulary = json.loads(text)["model"]["vocab"] | emu3_names()
    assert len(vocabulary) == 184_622
    more = {"model_type": "emu3_text_model", "rope_scaling": {"rope_type": "default"}}
    config = {
        "architectures": ["Emu3ForConditionalGeneration"],
        "model_type": "emu3",
        "text_config": EMU3_SIZES | more,  # the published one leaves the sizes to the defaults of its class
        "torch_dtype": "float32",
        "vocabulary_map": vocabulary,
        "vq_config": EMU3_VQ,
    }
    tensors = emu3_weights(Emu3Config(**config))
    old = {"model.text_model.": "text_model.model.", "model.vqmodel.": "vqmodel.", "lm_head.": "text_model.lm_head."}
    tensors = {_renamed(name, old): tensor for name, tensor in tensors.items()}
    assert sum(name.startswith("text_model.") for name in tensors) == 9 * 2 + 3  # 291 with 32 layers
    write_checkpoint(folder, config, tensors, 3)
    named = {"bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>"}
    named |= {"boi_token": "<|image start|>", "eoi_token": "<|image end|>", "image_token": "<image>"}
    named |= {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>", "eol_token": "<|extra_200|>"}
    more = {"processor_class": "Emu3Processor", "tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": {}}
    write_tokenizer(folder, text, emu3_names(), named | more)
    picture = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_pixels": 262144, "max_pixels": 1048576}
    write_json(folder / "preprocessor_config.json", picture | {"image_processor_type": "Emu3ImageProcessor"})
    return folder


def _renamed(name: str, old: dict[str, str]) -> str:
    prefix = next(prefix for prefix in old if name.startswith(prefix))
    return old[prefix] + name.removeprefix(prefix)
