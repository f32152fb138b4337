"""Tiny random checkpoints in the layouts in which Chameleon, Anole and Lumina are published, their quirks included.

File names, key names and their number per block, config fields (wrong ones too), the numbering of the vocabulary and
the types of the tensors are the published ones; widths, depths, the picture's size and the number of words are not.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from conftest import SENTENCES
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from rl.models.conversion import prepare
from rl.models.text_tokenizer import train_text_tokenizer
from rl.models.vq import VQDecoder

CODES, FIRST_CODE, FIRST_WORD = 8192, 4, 16384
END_IMAGE, BEGIN_IMAGE, END_TURN, IMAGE = 8196, 8197, 8710, 8711
LM_OF_LAYER = (
    *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
    *(f"self_attn.{x}_norm.{y}" for x in "qk" for y in ("weight", "bias")),
    *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
NEW_VQ_NAMES = {
    "embed_dim": 32,
    "num_embeddings": CODES,
    "double_latent": False,
    "latent_channels": 32,
    "resolution": 64,
    "in_channels": 3,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": None,
    "dropout": 0.0,
    "attn_type": "vanilla",
}
OLD_VQ_NAMES = {
    "ch": 32,
    "ch_mult": [1, 1, 2, 2, 4],
    "n_embed": CODES,
    "out_ch": 3,
    "z_channels": 32,
    "double_z": False,
    **{key: NEW_VQ_NAMES[key] for key in ("embed_dim", "resolution", "in_channels", "num_res_blocks", "dropout")},
    "attn_resolutions": [],
}


# ---- vocabulary


def code_name(code: int, padded: bool = False) -> str:
    digits = f"{code:04d}" if padded else str(code)
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in digits) + "Z"


def low_names(padded: bool = False, renamed: bool = True) -> dict[str, int]:
    """The 16,384 special names below the words; `renamed`: `<image>` in the place of `<reserved08707>`, as in HF."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": END_IMAGE, "<racm3:break>": BEGIN_IMAGE}
    names |= {code_name(code, padded): FIRST_CODE + code for code in range(CODES)}
    names |= {f"<reserved{number - 4:05d}>": number for number in range(8198, FIRST_WORD)}
    if renamed:
        names["<image>"] = names.pop("<reserved08707>")
    return dict(sorted(names.items(), key=lambda item: item[1]))


@functools.cache
def tokenizer_text(padded: bool = False, renamed: bool = True) -> str:
    """A tokenizer.json (or, not renamed, Meta's text_tokenizer.json): special names, then bytes and merges."""
    found = json.loads(train_text_tokenizer(SENTENCES * 3, 300).backend_tokenizer.to_str())
    names = low_names(padded, renamed)
    words = [w for w in found["model"]["vocab"] if not (w.startswith("<") and len(w) > 1)]
    while (FIRST_WORD + len(words)) % 4:  # Meta's larger model has the head in four parts
        words.pop()
    kept = set(words)
    merges = [m for m in found["model"]["merges"] if "".join(m) in kept]
    found["model"] |= {"vocab": names | {word: FIRST_WORD + i for i, word in enumerate(words)}, "merges": merges}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    found["added_tokens"] = [{"id": number, "content": name, **plain} for name, number in names.items()]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequences = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, sequences[0]],
        "pair": [bos, sequences[0], sequences[1]],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    return json.dumps(found)


def vocabulary(padded: bool = False, renamed: bool = True) -> dict[str, int]:
    return json.loads(tokenizer_text(padded, renamed))["model"]["vocab"]  # type: ignore[no-any-return]


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


# ---- weights


def normal(shape: Sequence[int], generator: torch.Generator, name: str = "") -> Tensor:
    """Weights under which activations keep their size; norms near one."""
    noise = torch.randn(*shape, generator=generator)
    if "norm" in name:
        return noise * 0.2 + ("weight" in name)
    return noise / (noise[0].numel() ** 0.5 if noise.dim() > 1 else 10)


@functools.cache
def vq_weights(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder half (names of `ChameleonVQVAE`) and decoder (taming's names), float32."""
    generator, config = torch.Generator().manual_seed(seed), ChameleonVQVAEConfig(**NEW_VQ_NAMES)
    with torch.device("meta"):
        modules: list[nn.Module] = [ChameleonVQVAE(config), VQDecoder(config)]
    encoder, decoder = (
        {name: normal(value.shape, generator, name) for name, value in module.state_dict().items()}
        for module in modules
    )
    encoder["quantize.embedding.weight"] = torch.randn(CODES, 32, generator=generator)
    return encoder, decoder


def lm_shapes(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int) -> dict[str, tuple[int, ...]]:
    head, shapes = hidden // heads, {}
    rows = {"q": hidden, "k": kv * head, "v": kv * head, "o": hidden, "gate": mlp, "up": mlp, "down": hidden}
    for layer in range(layers):
        for name in LM_OF_LAYER:
            part = name.split(".")[-2]
            kind = part.split("_")[0]
            shape = (rows[kind], mlp if kind == "down" else hidden) if part.endswith("proj") else (hidden,)
            shapes[f"model.layers.{layer}.{name}"] = {"q_norm": (heads, head), "k_norm": (kv, head)}.get(part, shape)
    return {
        "model.embed_tokens.weight": (vocab, hidden),
        **shapes,
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }


def lm_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: normal(shape, generator, name).to(torch.bfloat16) for name, shape in shapes.items()}


# ---- files


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


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


def meta_weights(large: bool, seed: int = 3) -> list[dict[str, Tensor]]:
    """Meta's state dicts, one a rank: bfloat16, norms of queries and keys of a rank's own, RoPE on neighbours."""
    hidden, mlp, heads, kv, ranks = (64, 128, 8, 4, 4) if large else (32, 64, 2, 2, 1)
    head, vocab, generator = hidden // heads, len(vocabulary()), torch.Generator().manual_seed(seed)
    same = {"norm.weight": (hidden,)} | {
        f"layers.{i}.{n}_norm.weight": (hidden,) for i in (0, 1) for n in ("attention", "ffn")
    }
    shared = {name: normal(shape, generator, name).to(torch.bfloat16) for name, shape in same.items()}
    found: list[dict[str, Tensor]] = []
    for _ in range(ranks):
        shapes = {"tok_embeddings.weight": (vocab, hidden // ranks), "output.weight": (vocab // ranks, hidden)}
        for layer in (0, 1):
            attention, feed = f"layers.{layer}.attention.", f"layers.{layer}.feed_forward."
            shapes |= {
                f"{attention}w{x}.weight": (n * head // ranks, hidden)
                for x, n in zip("qkv", (heads, kv, kv), strict=True)
            }
            shapes |= {f"{attention}wo.weight": (hidden, hidden // ranks)}
            shapes |= {f"{attention}{x}_normalization.{y}": (head,) for x in "qk" for y in ("weight", "bias")}
            shapes |= {f"{feed}w{x}.weight": (mlp // ranks, hidden) for x in "13"}
            shapes |= {f"{feed}w2.weight": (hidden, mlp // ranks)}
        own = {name: normal(shape, generator, name).to(torch.bfloat16) for name, shape in shapes.items()}
        found.append({**own, **shared, "rope.freqs": torch.arange(head // 2, dtype=torch.float32)})
    return found


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
