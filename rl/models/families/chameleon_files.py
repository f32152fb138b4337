"""Chameleon checkpoints as they are published: transformers' folders with and without a decoder, and what they lack.

A folder of `facebook/chameleon-7b` has the encoder half of the VQ tokenizer, one in Anole's conversion both halves,
Lumina's none. The VQ tokenizer is read by itself, in float32: in the bfloat16 of the language model some codes change.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

from rl.errors import RewindError
from rl.models.families.vqgan_files import decoder_of, key_of, put, quiet_transformers, vq_weights
from rl.models.settings import Settings
from rl.models.vq import VQDecoder
from rl.models.vq_files import vq_config_of
from rl.running.files import read_json

_VQ = re.compile(r"(model\.)?vqmodel\.")
_HEAD_NORM = re.compile(r"\.[qk]_norm\.(weight|bias)$")


def open_folder(
    folder: Path, settings: Settings, vq_folder: Path | None
) -> tuple[ChameleonForConditionalGeneration, VQDecoder | None]:
    """The transformers model, its VQ tokenizer in float32, and the decoder, None where nobody has one.

    Args:
        folder: a transformers checkpoint in safetensors.
        settings: how it is opened.
        vq_folder: where the VQ weights are, if not in the folder.

    Raises:
        RewindError: weights that do not fit the config, or no VQ tokenizer.
    """
    config = ChameleonConfig.from_pretrained(folder, local_files_only=True)
    vq = vq_weights(folder, vq_folder)
    told = read_json(folder / "config.json").get("vq_config") or {}
    if renamed := {**(vq_config_of(told) if vq_config_of(told) != told else {}), **vq.config}:
        config.vq_config = ChameleonVQVAEConfig(**{**config.vq_config.to_dict(), **renamed})
    with quiet_transformers():
        model, report = ChameleonForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings.arguments(),
        )
    spread = {key for key in map(key_of, report["mismatched_keys"]) if _HEAD_NORM.search(key)}
    # transformers only warns of these and leaves the weights random.
    wrong = sorted({*map(key_of, report["mismatched_keys"])} - spread)
    wrong += sorted(key for kind in ("missing_keys", "unexpected_keys") for key in report[kind] if not _VQ.match(key))
    if wrong:
        raise RewindError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or "
            f"of another shape, e.g. '{wrong[0]}'"
        )
    if spread:
        _spread_head_norms(model, folder, spread)
    put(model.model.vqmodel.float(), vq.encoder, f"the VQ tokenizer in {vq.where}")
    model.eval()
    return model, decoder_of(model.config.vq_config, vq, folder)


def _spread_head_norms(model: nn.Module, folder: Path, keys: set[str]) -> None:
    """Norms of queries and keys that are stored once for several heads (Lumina's conversion): the same for each head.

    Raises:
        RewindError: stored rows that do not divide the heads.
    """
    from safetensors import safe_open

    places = dict(model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as found:
            for key in keys & set(found.keys()):
                stored, place = found.get_tensor(key), places[key]
                if stored.dim() != 2 or place.shape[0] % stored.shape[0] or place.shape[1:] != stored.shape[1:]:
                    raise RewindError(f"'{key}' in {folder} is {list(stored.shape)} and should be {list(place.shape)}")
                with torch.no_grad():
                    place.copy_(stored.repeat_interleave(place.shape[0] // stored.shape[0], 0))
