"""Vocabulary, weights and sizes of the tiny checkpoints of `published.py`."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

import torch
from conftest import SENTENCES
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

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
