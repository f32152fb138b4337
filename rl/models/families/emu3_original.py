"""Emu3 as its own code stores it (BAAI/Emu3-Gen, -Chat, -Stage1; UniVLA), read with transformers' classes.

The language model's tensors have plain names, the tokenizer is a file of ranks (`emu3.tiktoken`) with the special names
that follow them in another, and the VQ tokenizer is a checkpoint of its own (BAAI/Emu3-VisionTokenizer), which writes
linear layers as convolutions of 1 x 1. No code of a checkpoint is run.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from tokenizers.normalizers import NFC
from torch import Tensor
from transformers import Emu3Config, Emu3VQVAEConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from rl.errors import RewindError
from rl.models.vq_files import VQWeights, vq_config_of
from rl.running.files import read_json

MODEL_TYPE, VOCABULARY = "Emu3", 184_622
RANKS_FILE, CODES_FILE = "emu3.tiktoken", "emu3_vision_tokens.txt"
KEYS = {r"^model\.": "model.text_model."}
"""Names of the language model's tensors as transformers' class has them."""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", *(f"<|extra_{i}|>" for i in range(1, 205)))
"""What follows the words; transformers calls the first of the extra ones `<image>`."""
_MARKERS = {"bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>"}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
)
_WORDS = (  # how Qwen's tokenizer, whose ranks these are, cuts a text: a digit is a token
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_VQ_KEYS = tuple(  # in this order
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^encoder\.down\.", "encoder.down_block.down."),
        (r"^decoder\.up\.", "decoder.up_block.up."),
        (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
        (r"\.attn_1\.norm\.", ".attn_norm."),
        (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
        (r"\.(attn_1|attn\.\d+)\.([qkv])\.", r".\1.\2_proj."),
        (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
    )
)
_LINEAR = re.compile(r"\.(q|k|v|out)_proj\.weight$")


def for_robots(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is of UniVLA's kind, which has Emu3's vocabulary and writes pictures otherwise."""
    return "Emu3MoE" in (config.get("architectures") or ()) or "action_config" in config


def config_of(folder: Path, vq_config: Emu3VQVAEConfig, vocabulary: dict[str, int]) -> Emu3Config:
    """The config that transformers' classes have for a folder's language model and a VQ tokenizer.

    Raises:
        RewindError: RoPE that is scaled by a rule that these checkpoints do not have.
    """
    told = read_json(folder / "config.json")
    if told.get("rope_scaling"):
        raise RewindError(f"{folder}/config.json scales RoPE ({told['rope_scaling']}), which is not known of Emu3")
    text: dict[str, Any] = {key: told[key] for key in _SIZES if key in told}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": float(told.get("rope_theta", 1e6))}}
    dtype = told.get("dtype") or told.get("torch_dtype")
    return Emu3Config(
        text_config=text,
        vq_config=vq_config,
        vocabulary_map=vocabulary,  # all at once: its class looks at every name each time that a field is set
        tie_word_embeddings=bool(told.get("tie_word_embeddings")),
        dtype=dtype,
    )


class _Ranks(TikTokenConverter):
    """transformers' converter, which asks another package to read the file."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = Path(tiktoken_url).read_bytes().split(b"\n")
        pairs = (line.split() for line in lines if line.strip())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with its ranks and the names behind them.

    Raises:
        RewindError: a file is missing or is none of these.
    """
    ranks, codes = folder / RANKS_FILE, folder / CODES_FILE
    if missing := [file.name for file in (ranks, codes) if not file.is_file()]:
        raise RewindError(f"{folder} lacks {' and '.join(missing)}, Emu3's tokenizer: fetch the whole repository again")
    try:
        names = [line.strip() for line in codes.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = _Ranks(str(ranks), pattern=_WORDS, extra_special_tokens=[*_SPECIAL, *names]).converted()
    except (ValueError, KeyError) as error:
        raise RewindError(f"{ranks} is no file of ranks (base64 and a number a line): {error}") from error
    if found.get_vocab_size() != VOCABULARY:
        raise RewindError(f"the tokenizer in {folder} has {found.get_vocab_size()} ids, and Emu3's has {VOCABULARY}")
    found.normalizer = NFC()
    return PreTrainedTokenizerFast(tokenizer_object=found, clean_up_tokenization_spaces=False, **_MARKERS)


def renamed_vq(found: VQWeights) -> VQWeights:
    """The VQ tokenizer's tensors under transformers' names, whichever of both they have."""
    encoder, decoder = (_renamed(part, prefix) for part, prefix in ((found.encoder, ""), (found.decoder, "decoder.")))
    return VQWeights(encoder, decoder, found.config, found.where)


def _renamed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for key, tensor in tensors.items():
        name = prefix + key
        for pattern, new in _VQ_KEYS:
            name = pattern.sub(new, name)
        as_linear = _LINEAR.search(name) and tensor.shape[2:] == (1, 1)
        found[name.removeprefix(prefix)] = tensor.flatten(1) if as_linear else tensor
    return found


def vq_config_in(folder: Path) -> Emu3VQVAEConfig:
    """The sizes of the VQ tokenizer of a folder: of its own checkpoint or of a whole model; else the usual ones."""
    file = folder / "config.json"
    told = read_json(file) if file.is_file() else {}
    own = told if "codebook_size" in told else told.get("vq_config") or {}
    values = vq_config_of({key: value for key, value in own.items() if key not in ("model_type", "architectures")})
    known = {key: values[key] for key in Emu3VQVAEConfig().to_dict() if key in values}
    found = Emu3VQVAEConfig(**known)
    found.hidden_size = found.base_channels * found.channel_multiplier[-1]  # of its attention
    return found
