"""Meta's own layout of Chameleon (and Anole's first release), turned into transformers' names a tensor at a time.

`models/7b/{consolidated.pth, params.json, consolidate_params.json}`, for 30b one `consolidated.NN.pth` a rank of the
machines that trained it, beside `tokenizer/{text_tokenizer.json, vqgan.ckpt, vqgan.yaml}`. Meta rotates neighbouring
numbers of queries and keys (RoPE as complex numbers), transformers the two halves, so their rows are put in another
order; each rank has norms of queries and keys of its own for all its heads, transformers one a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, PreTrainedTokenizerFast

from rl.errors import RewindError
from rl.models.families.chameleon_files import RAW_TOKENIZER_FILE, raw_tokenizer
from rl.models.pickles import tensors_of
from rl.models.vq_files import VQWeights
from rl.running.files import read_json

PARAMS_FILE, PARTS_FILE = "params.json", "consolidate_params.json"
_OF_MODEL = {  # Meta's name -> transformers', and the axis along which ranks share it; None: each has all of it
    "tok_embeddings.weight": ("model.embed_tokens.weight", 1),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
_OF_LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "attention.q_normalization.weight": ("self_attn.q_norm.weight", None),
    "attention.q_normalization.bias": ("self_attn.q_norm.bias", None),
    "attention.k_normalization.weight": ("self_attn.k_norm.weight", None),
    "attention.k_normalization.bias": ("self_attn.k_norm.bias", None),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}
_NOT_WEIGHTS = {"rope.freqs"}


def is_meta(folder: Path) -> bool:
    """Whether a folder is in Meta's layout; its weights need not be there yet."""
    return not any(folder.glob("*.safetensors")) and bool(_models(folder))


def _models(folder: Path) -> list[Path]:
    places = [folder, *sorted((folder / "models").glob("*"))] if folder.is_dir() else []
    return [place for place in places if (place / PARAMS_FILE).is_file()]


@dataclass(frozen=True)
class MetaCheckpoint:
    """One model in Meta's layout: the folder with its weights and the one with its tokenizers."""

    models: Path
    tokenizers: Path

    @classmethod
    def find(cls, folder: Path) -> MetaCheckpoint:
        """The model in a folder: the folder itself, or `models/NAME` in it.

        Raises:
            RewindError: several models, or no tokenizer.
        """
        found = _models(folder)
        if len(found) != 1:
            names = ", ".join(str(place) for place in found) or "none"
            raise RewindError(f"{folder} holds {len(found)} models in Meta's layout ({names}): name the folder of one")
        for place in (found[0], found[0].parent, found[0].parent.parent):
            for tokenizers in (place / "tokenizer", place):
                if (tokenizers / RAW_TOKENIZER_FILE).is_file():
                    return cls(found[0], tokenizers)
        raise RewindError(f"{folder} has no tokenizer/{RAW_TOKENIZER_FILE}: a model in Meta's layout comes with one")

    @cached_property
    def params(self) -> dict[str, Any]:
        """The model's sizes."""
        told = read_json(self.models / PARAMS_FILE)
        parts = read_json(self.models / PARTS_FILE) if (self.models / PARTS_FILE).is_file() else {}
        # How many ranks trained the model stands there too; how many wrote it counts.
        found = {**told, **told.get("model", {}), "model_parallel_size": None, **parts}
        missing = [key for key in ("dim", "n_layers", "n_heads") if not isinstance(found.get(key), int)]
        if missing:
            raise RewindError(f"{self.models / PARAMS_FILE} does not state {', '.join(missing)}")
        return found

    @cached_property
    def parts(self) -> list[dict[str, Tensor]]:
        """Each rank's tensors, mapped from its file.

        Raises:
            RewindError: files are missing, or do not hold the tensors that the sizes ask for.
        """
        files = sorted(self.models.glob("consolidated*.pth"))
        count = self.params["model_parallel_size"] or len(files)
        if not files or len(files) != count:
            raise RewindError(f"{self.models} has {len(files)} files consolidated*.pth, and {count or 1} belong to it")
        parts = [tensors_of(file) for file in files]
        for file, part in zip(files, parts, strict=True):
            if wrong := (set(part) - _NOT_WEIGHTS) ^ set(self._names()):
                raise RewindError(
                    f"{file} does not fit {PARAMS_FILE}: {len(wrong)} tensors are missing or left over, e.g. "
                    f"'{min(wrong)}'"
                )
        return parts

    def _names(self) -> dict[str, tuple[str, int | None]]:
        """Every tensor of a rank, in the order of the model: transformers' name, and the axis along which it is cut."""
        found: dict[str, tuple[str, int | None]] = {"tok_embeddings.weight": _OF_MODEL["tok_embeddings.weight"]}
        for layer in range(self.params["n_layers"]):
            for name, (renamed, axis) in _OF_LAYER.items():
                found[f"layers.{layer}.{name}"] = f"model.layers.{layer}.{renamed}", axis
        return found | _OF_MODEL

    def config(self, tokenizer: PreTrainedTokenizerFast, vq: VQWeights, dtype: torch.dtype) -> ChameleonConfig:
        """The config that transformers' Chameleon has for this model."""
        p, first = self.params, self.parts[0]
        theta = float(p.get("rope_theta", 10000.0))
        return ChameleonConfig(
            architectures=["ChameleonForConditionalGeneration"],
            vocab_size=first["output.weight"].shape[0] * len(self.parts),
            hidden_size=p["dim"],
            intermediate_size=first["layers.0.feed_forward.w1.weight"].shape[0] * len(self.parts),
            num_hidden_layers=p["n_layers"],
            num_attention_heads=p["n_heads"],
            num_key_value_heads=p.get("n_kv_heads") or p["n_heads"],
            max_position_embeddings=4096 if theta <= 10000.0 else 16384,
            rms_norm_eps=p.get("norm_eps", 1e-5),
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            swin_norm=bool(p.get("swin_norm", False)),
            model_parallel_size=len(self.parts),
            tie_word_embeddings=False,
            vocabulary_map=dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])),
            vq_config=vq.config,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype=dtype,
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The text tokenizer."""
        return raw_tokenizer(self.tokenizers / RAW_TOKENIZER_FILE)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The language model's tensors under transformers' names, one after the other, in a dtype or their own."""
        heads = {"q": self.params["n_heads"], "k": self.params.get("n_kv_heads") or self.params["n_heads"]}
        for name, (renamed, axis) in self._names().items():
            shared = [part[name] for part in self.parts]
            kind = renamed.split("self_attn.")[-1][:1]
            try:
                if "_norm." in renamed:
                    tensor = _norms_by_head(shared, heads[kind])
                elif axis is None:
                    tensor = shared[0] if len(shared) == 1 else torch.stack(shared).mean(0)
                else:
                    tensor = shared[0] if len(shared) == 1 else torch.cat(shared, axis)
                if renamed.endswith(("q_proj.weight", "k_proj.weight")):
                    tensor = _halves(tensor.unflatten(0, (heads[kind], -1))).flatten(0, 1)
            except RuntimeError as error:
                raise RewindError(f"'{name}' in {self.models} does not fit {PARAMS_FILE}: {error}") from error
            yield renamed, tensor if dtype is None else tensor.to(dtype)


def _halves(rows: Tensor) -> Tensor:
    """Along axis 1: from Meta's order, in which neighbours are a pair, to transformers', halves: 0 2 4 ... 1 3 5 ..."""
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], 1)


def _norms_by_head(ranks: list[Tensor], heads: int) -> Tensor:
    """One row a rank -> one row a head, the numbers in transformers' order."""
    return _halves(torch.stack(ranks)).repeat_interleave(heads // len(ranks), 0)
