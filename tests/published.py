"""Tiny random checkpoints in the layouts in which Chameleon, Anole and Lumina are published, their quirks included.

File names, key names and their number per block, config fields (wrong ones too), the numbering of the vocabulary and
the types of the tensors are the published ones; widths, depths, the picture's size and the number of words are not.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from published_parts import (
    BEGIN_IMAGE,
    CODES,
    END_IMAGE,
    IMAGE,
    NEW_VQ_NAMES,
    OLD_VQ_NAMES,
    lm_shapes,
    lm_weights,
    low_names,
    meta_weights,
    tokenizer_text,
    vocabulary,
    vq_weights,
)
from safetensors.torch import save_file
from torch import Tensor

from rl.models.conversion import prepare


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(folder: Path, padded: bool = False) -> None:
    (folder / "tokenizer.json").write_text(tokenizer_text(padded))
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): {"content": name, **plain} for name, i in low_names(padded).items()},
        **names,
        "sep_token": "<reserved08706>",
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 10**30,
        "processor_class": "ChameleonProcessor",
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {k: {"content": v, **plain} for k, v in names.items()})


def index_text(names: Iterable[str], shards: int, total_size: int) -> str:
    """The index of a sharded checkpoint as transformers writes it; every key is said to lie in the first shard."""
    where = dict.fromkeys(names, f"model-00001-of-{shards:05d}.safetensors")
    index = {"metadata": {"total_size": total_size}, "weight_map": where}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def write_shards(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    """Shards with an index that says where each tensor is."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    where: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text)


def _config(padded: bool, **changes: Any) -> dict[str, Any]:
    words = vocabulary(padded)
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,  # <pad>
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "model_parallel_size": 1,
        "model_type": "chameleon",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": None,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "swin_norm": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "use_cache": True,
        "vocab_size": len(words),
        "vocabulary_map": words,
        "vq_config": {"model_type": "chameleon_vqgan", **NEW_VQ_NAMES},
    } | changes


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return lm_shapes(*(config[key] for key in sizes), vocab=config["vocab_size"])


def _write_hf(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int) -> Path:
    write_shards(folder, tensors, shards)
    write_json(folder / "config.json", config)
    told = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.43.0.dev0"}
    write_json(folder / "generation_config.json", told)
    return folder


def _in_model(*parts: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    return {prefix + name: t for prefix, part in zip(prefixes, parts, strict=True) for name, t in part.items()}


def chameleon_hf(folder: Path, large: bool = False, padded: bool = False) -> Path:
    """`facebook/chameleon-7b` (3 shards) or `-30b` (15, swin-norm, fewer heads of keys and values): no decoder."""
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "swin_norm": True}
    config = _config(padded, **(sizes | {"model_parallel_size": 4} if large else {}))
    tensors = lm_weights(_shapes(config)) | _in_model(vq_weights()[0], prefixes=["model.vqmodel."])
    _write_hf(folder, config, tensors, 15 if large else 3)
    write_tokenizer(folder, padded)
    processor = {"image_seq_length": 16, "image_token": "<image>", "processor_class": "ChameleonProcessor"}
    write_json(folder / "processor_config.json", processor)
    picture = {"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 0.0078, "size": {"shortest_edge": 64}}
    write_json(folder / "preprocessor_config.json", picture | {"image_processor_type": "ChameleonImageProcessor"})
    for name in ("LICENSE", "USE_POLICY.md"):
        (folder / name).write_text("of the publisher\n")
    return folder


def anole_leloy(folder: Path) -> Path:
    """`leloy/Anole-7b-v0.1-hf`: the decoder among the shards, and configs that say some things twice."""
    config = _config(
        True,
        boi_token_id=BEGIN_IMAGE,
        eoi_token_id=END_IMAGE,
        image_token_id=IMAGE,
        vq_config={"model_type": "chameleon_vqgan", **OLD_VQ_NAMES, **NEW_VQ_NAMES},
    )
    parts = ["model.vqmodel.", "model.vqmodel.decoder."]
    tensors = lm_weights(_shapes(config), 1) | _in_model(*vq_weights(), prefixes=parts)
    _write_hf(folder, config, tensors, 3)
    write_tokenizer(folder, True)
    return folder


def lumina_lm(folder: Path, stored_heads: int = 1, tokenizer: bool = True) -> Path:
    """`Alpha-VLLM/Lumina-mGPT-7B-*`: no VQ tokenizer at all, norms of queries and keys once for all heads."""
    config = _config(
        False,
        architectures=["ChameleonXLLMXForConditionalGeneration"],
        mask_image_logits=False,
        dropout=0.05,
        z_loss_weight=1e-5,
        num_attention_heads=4,
        num_key_value_heads=4,
        vq_config={"model_type": "chameleon_vqgan", **OLD_VQ_NAMES},
    )
    tensors = lm_weights(_shapes(config), 2)
    tensors = {k: v[:stored_heads].contiguous() if "k_norm" in k or "q_norm" in k else v for k, v in tensors.items()}
    _write_hf(folder, config, tensors, 2)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def vqvae_folder(folder: Path) -> Path:
    """`leloy/Anole-7b-v0.1-vqvae-hf`: one file with the whole VQGAN, names without a prefix."""
    folder.mkdir(parents=True)
    tensors = _in_model(*vq_weights(), prefixes=["", "decoder."])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["ChameleonVQVAE"], "model_type": "chameleon_vqgan", "torch_dtype": "float32"}
    write_json(folder / "config.json", config | NEW_VQ_NAMES)
    return folder


def meta(folder: Path, large: bool = False) -> Path:
    """Meta's own folder, and `GAIR/Anole-7b-v0.1`: models/7b (or 30b, in four parts) and tokenizer/, in pickles."""
    hidden, heads, kv, size = (64, 8, 4, "30b") if large else (32, 2, None, "7b")
    models, parts = folder / "models" / size, meta_weights(large)
    models.mkdir(parents=True)
    write_vqgan(folder / "tokenizer")
    for rank, part in enumerate(parts):
        torch.save(OrderedDict(part), models / (f"consolidated.{rank:02d}.pth" if large else "consolidated.pth"))
    sizes = {"dim": hidden, "n_layers": 2, "n_heads": heads, "n_kv_heads": kv, "vocab_size": len(vocabulary())}
    told = {"norm_eps": 1e-05, "rope_theta": 10000.0, "qk_normalization": True, "swin_norm": large, "multiple_of": 256}
    write_json(models / "params.json", {"model": sizes | told, "seed": 1, "model_parallel_size": 8})
    write_json(models / "consolidate_params.json", {"model_parallel_size": len(parts)})
    (models / "config.json").write_text('{"model_type": "chameleon", "version": "0.1"}')
    (models / "checklist.chk").write_text("0\n")
    (folder / "tokenizer" / "text_tokenizer.json").write_text(tokenizer_text(renamed=False))
    return folder


def write_vqgan(folder: Path) -> Path:
    """`vqgan.ckpt` in the layout of taming-transformers, its discriminator included, and `vqgan.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = OrderedDict(_in_model(*vq_weights(), prefixes=["", "decoder."]))
    state["loss.discriminator.main.0.weight"] = torch.zeros(4, 3, 4, 4)
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    sizes = {k: v for k, v in OLD_VQ_NAMES.items() if k not in ("n_embed", "embed_dim")}
    params = {
        "ckpt_path": None,
        "ddconfig": sizes,
        "embed_dim": 32,
        "n_embed": CODES,
        "lossconfig": {"target": "x.Loss"},
    }
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": "x.VQModel", "params": params}}))
    return folder


def in_hub_cache(cache: Path, repository: str, folder: Path, revision: str = "main", sha: str = "a" * 40) -> None:
    """A folder where huggingface_hub keeps what it has fetched of a repository: refs and snapshots."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(sha)
    (place / "snapshots").mkdir(exist_ok=True)
    (place / "snapshots" / sha).symlink_to(folder.resolve(), target_is_directory=True)


class Shelf:
    """The published folders under their names, each written when it is first asked for."""

    MAKERS: ClassVar[dict[str, Callable[[Path], Path]]] = {
        "chameleon-7b": chameleon_hf,
        "chameleon-30b": lambda folder: chameleon_hf(folder, large=True),
        "anole": anole_leloy,
        "lumina": lumina_lm,
        "lumina-without-tokenizer": lambda folder: lumina_lm(folder, stored_heads=2, tokenizer=False),
        "vqvae": vqvae_folder,
        "vqgan": write_vqgan,
        "meta-7b": meta,
        "meta-30b": lambda folder: meta(folder, large=True),
    }

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> Path:
        folder = self.root / name
        if not folder.exists():
            if name.startswith("converted "):
                prepare(str(self[name.removeprefix("converted ")]), folder, max_shard_size=2 * 10**6).write(folder)
            else:
                self.MAKERS[name](folder)
        return folder
