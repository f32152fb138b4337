"""Sizes of a decoder: what its parameters, adapters, activations and cache take, from its shape alone (no torch).

All families here are decoders of the LLaMA kind: q, k, v, o projections, a gated MLP, two RMS norms a layer, one at the
end. The image tokenizer is not counted (under 0.3 B parameters in all of them).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.models.bases import adapter_folder, base_folder, base_of_adapter, same_base
from rl.models.known import CARD_FILE, LINEAR_LAYERS, SHIPPED, VQ_CONFIG_FILE
from rl.models.sizes import PictureSize

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    `image_codes` are the tokens a picture may consist of, `tokens_per_image` how many make one, `weight_bytes` the
    bytes of a stored weight, `qk_norm` whether queries and keys are normalised with weight and bias (Chameleon),
    `pixels` those of a picture, `vq_channels` the base channels of its tokenizer.
    """

    name: str
    source: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    image_codes: int
    tokens_per_image: int
    tied: bool = False
    qk_norm: bool = False
    weight_bytes: int = 2
    pixels: int = 0
    vq_channels: int = 128

    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a decoder layer."""
        h, f, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = [(h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)]
        return dict(zip(LINEAR_LAYERS, sizes, strict=True))

    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        norms = 2 * self.hidden + (2 * (self.heads + self.kv_heads) * self.head_dim if self.qk_norm else 0)
        return sum(a * b for a, b in self.linear().values()) + norms

    def parameters(self) -> int:
        """Parameters of embeddings, layers, the last norm and the head."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters() + self.hidden + tables

    def lora_parameters(self, r: int, targets: Collection[str] = LINEAR_LAYERS) -> int:
        """Parameters of an adapter: r (inputs + outputs) a layer (arXiv 2106.09685).

        Raises:
            RewindError: a target that is no linear layer of a decoder.
        """
        unknown = sorted(set(targets) - set(LINEAR_LAYERS))
        if unknown:
            raise RewindError(f"'{unknown[0]}' is no linear layer of the decoder: choose of {', '.join(LINEAR_LAYERS)}")
        return self.layers * sum(r * (a + b) for name, (a, b) in self.linear().items() if name in targets)

    def cache_bytes(self) -> int:
        """Bytes of the cache a token: a key and a value in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.weight_bytes

    def layer_activations(self, dropout_on: Collection[str] = ()) -> int:
        """Bytes that one layer keeps for the backward pass a token, if its weights are frozen and have adapters.

        With an attention that keeps no T x T matrix: of each norm its input (always float32) and output; queries, keys,
        values and output of the attention (queries and keys twice if they are normalised); of the gated MLP gate, up,
        the activated gate and the product. `dropout_on` names the layers whose adapter drops inputs: each keeps the
        dropped input and a mask of a byte.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        kept = 2 * self.hidden + 2 * q + 2 * kv + 4 * self.intermediate + (q + kv if self.qk_norm else 0)
        dropped = sum(a for name, (a, _) in self.linear().items() if name in dropout_on)
        return self.weight_bytes * kept + 4 * 2 * self.hidden + (self.weight_bytes + 1) * dropped


LIQUID_WORDS = 256_000
_CHAMELEON_PAPER = "arXiv 2405.09818, table 1"
_KNOWN = (  # hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, image_codes, tokens_per_image
    Shape(
        "chameleon-7b",
        f"defaults of transformers' ChameleonConfig; {_CHAMELEON_PAPER}",
        *(4096, 11008, 32, 32, 32, 128, 65536, 8192, 1024),
        qk_norm=True,
        pixels=512**2,
    ),
    Shape(
        "chameleon-30b",
        f"config.json of facebook/chameleon-30b; the 34B of {_CHAMELEON_PAPER}",
        *(8192, 22016, 48, 64, 8, 128, 65536, 8192, 1024),
        qk_norm=True,
        pixels=512**2,
    ),
    Shape(
        "emu3-8b",
        "config.json of BAAI/Emu3-Chat; 512x512 pixels are 64 rows of 64 codes and an end of line",
        *(4096, 14336, 32, 32, 8, 128, 184622, 32768, 64 * 65),
        pixels=512**2,
        vq_channels=256,
    ),
    Shape(
        "liquid-7b",
        "config.json of google/gemma-7b, and 8,192 codes more in the vocabulary (arXiv 2412.04332)",
        *(3072, 24576, 28, 16, 16, 256, LIQUID_WORDS + 8192, 8192, 1024),
        tied=True,
        pixels=512**2,
    ),
)
_LUMINA = replace(
    _KNOWN[0],
    name="lumina-7b",
    source="Chameleon's; 512x512 pixels are 32 rows of 32 codes and an end of row",
    tokens_per_image=32 * 33,
)
KNOWN = {shape.name: shape for shape in (*_KNOWN, _LUMINA)}
"""Shapes at 512x512 pixels, with half-precision weights."""
SIZES = {"BAAI/Emu3-Stage1": "384"}
"""Usual picture sizes of published checkpoints, where they are not their family's."""
PUBLISHED = {
    "facebook/chameleon-7b": "chameleon-7b",
    "facebook/chameleon-30b": "chameleon-30b",
    "leloy/Anole-7b-v0.1-hf": "chameleon-7b",
    **{f"Alpha-VLLM/Lumina-mGPT-7B-{name}": "lumina-7b" for name in ("512", "768", "768-Omni", "1024")},
    "Junfeng5/Liquid_V1_7B": "liquid-7b",
    "BAAI/Emu3-Gen-hf": "emu3-8b",
    "BAAI/Emu3-Chat-hf": "emu3-8b",
    "BAAI/Emu3-Gen": "emu3-8b",
    "BAAI/Emu3-Chat": "emu3-8b",
    "BAAI/Emu3-Stage1": "emu3-8b",
}
"""Names on the Hub of checkpoints with these shapes."""


def shape_of(name_or_folder: str, image_size: str | None = None) -> Shape:
    """A known shape (by its name here or on the Hub), or that of a base as its `config.json` states it.

    `image_size` as for `load_fdm`; None is the base's own.

    Raises:
        RewindError: neither; a `config.json` that lacks a size.
    """
    plain = name_or_folder.partition("@")[0]
    published = PUBLISHED.get(plain, name_or_folder)
    image_size = image_size or SIZES.get(plain)
    if published in KNOWN:
        known, emu = KNOWN[published], published == "emu3-8b"
        if image_size is None:
            return known
        tokens = _tokens(image_size, 8 if emu else 16, row_ends=emu or known is _LUMINA)
        return replace(known, tokens_per_image=tokens, pixels=_pixels(image_size))
    file = base_folder(name_or_folder) / "config.json"
    if not file.is_file():
        names = ", ".join([*KNOWN, *SHIPPED])
        raise RewindError(f"'{name_or_folder}' is neither a folder with config.json nor one of {names}")
    config, card = _read_json(file), file.with_name("rewind.json")
    told = _read_json(card) if card.is_file() else {}
    beside = file.with_name(VQ_CONFIG_FILE)
    if beside.is_file():  # of a small Liquid
        config = {"vq_config": _read_json(beside), **config}
    size = image_size or told.get("image_size")
    try:
        return _from_config(name_or_folder, config | {"family": told.get("family")}, size)
    except KeyError as error:
        raise RewindError(f"{file} does not state {error}, which the arithmetic needs") from error


def _from_config(name: str, config: dict[str, Any], size: int | str | None) -> Shape:
    kind, text = config.get("model_type"), config.get("text_config", config)
    if kind in ("emu3", "Emu3"):  # the published config leaves them to the defaults of transformers' class
        usual = KNOWN["emu3-8b"]
        text = {
            "hidden_size": usual.hidden,
            "intermediate_size": usual.intermediate,
            "num_hidden_layers": usual.layers,
            "num_attention_heads": usual.heads,
            "num_key_value_heads": usual.kv_heads,
            "vocab_size": usual.vocabulary,
        } | text
    heads, (codes, tokens, pixels) = text["num_attention_heads"], _pictures(config, size)
    return Shape(
        name,
        "its config.json",
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        vocabulary=text["vocab_size"],
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind == "gemma"))),
        image_codes=codes,
        tokens_per_image=tokens,
        pixels=pixels,
        vq_channels=(config.get("vq_config") or {}).get("base_channels", 256 if kind in ("emu3", "Emu3") else 128),
        qk_norm=kind == "chameleon",
        weight_bytes=BYTES[config.get("dtype") or config.get("torch_dtype") or "float32"],
    )


def _pictures(config: dict[str, Any], size: int | str | None) -> tuple[int, int, int]:
    """How many codes there are, how many tokens a picture has (of a size, or of the usual one), and how many pixels."""
    kind, vq = config.get("model_type"), config.get("vq_config") or {}
    if kind == "gemma" and config["vocab_size"] > LIQUID_WORDS:  # Liquid, whose config says nothing of pictures
        size = size or 512
        return config["vocab_size"] - LIQUID_WORDS, _tokens(size, 16, row_ends=False), _pixels(size)
    if kind in ("emu3", "Emu3"):  # UniVLA: small frames without ends of rows
        for_robots = config.get("family") == "univla" or "action_config" in config
        size = size or (200 if for_robots else 512)
        codes = vq.get("codebook_size", KNOWN["emu3-8b"].image_codes)
        return codes, _tokens(size, 8, row_ends=not for_robots), _pixels(size)
    levels = len(vq["ch_mult"] if "ch_mult" in vq else vq["channel_multiplier"])  # Lumina has the old names
    size = size or vq["resolution"]
    tokens = _tokens(size, 2 ** (levels - 1), row_ends="mask_image_logits" in config)
    return vq["n_embed"] if "n_embed" in vq else vq["num_embeddings"], tokens, _pixels(size)


def _pixels(size: int | str) -> int:
    picture = PictureSize.of(size)
    return picture.height * picture.width


def _tokens(size: int | str, cell: int, row_ends: bool) -> int:
    """Tokens of a picture, of the tallest where each keeps its own shape: it has the most ends of rows."""
    picture = PictureSize.of(size)
    rows, columns = picture.height // cell, picture.width // cell
    return rows * columns + (picture.longest // cell if picture.own else rows) * row_ends


def adapter_of(run: str) -> tuple[str, int, list[str]] | None:
    """The base, rank and target modules of a run folder's adapter; None if the folder holds none."""
    folder = adapter_folder(run)
    if folder is None:
        return None
    config = _read_json(folder / "adapter_config.json")
    return base_of_adapter(folder), int(config["r"]), list(config["target_modules"])


def base_told_by(base_or_run: str) -> str:
    """A base, or the one that a run stands on."""
    found = adapter_of(base_or_run)
    return base_or_run if found is None else found[0]


def stands_on(base_or_run: str, run: str | None, base: str) -> bool:
    """Whether a base or run stands on the base of a run, or on a base: by fingerprints where both tell one, as
    `rl.models.opening.shares_base` finds it.
    """
    told = [_fingerprint(name) for name in (base_or_run, run)]
    if None not in told:
        return told[0] == told[1]
    return same_base(base_told_by(base_or_run), base)


def _fingerprint(run: str | None) -> Any:
    folder = None if run is None else adapter_folder(run)
    card = None if folder is None else folder / CARD_FILE
    return _read_json(card).get("base") if card is not None and card.is_file() else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewindError(f"{file} is not readable JSON: {error}") from error
    return found
