"""Chameleon checkpoints as they are published: transformers' folders with and without a decoder, and what they lack.

A folder of `facebook/chameleon-7b` has the encoder half of the VQ tokenizer, one in Anole's conversion both halves,
Lumina's none. The VQ tokenizer is read by itself, in float32: in the bfloat16 of the language model some codes change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig
from transformers.utils import logging as transformers_logging

from rl.errors import RewindError
from rl.models.settings import Settings
from rl.models.vq import DecoderConfig, VQDecoder
from rl.models.vq_files import VQWeights, read_vq, vq_config_of
from rl.running.files import read_json

DECODER_CONFIG_FILE = "decoder_config.json"
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
    vq = _vq_weights(folder, vq_folder)
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
    spread = {key for key in map(_key, report["mismatched_keys"]) if _HEAD_NORM.search(key)}
    # transformers only warns of these and leaves the weights random.
    wrong = sorted({*map(_key, report["mismatched_keys"])} - spread)
    wrong += sorted(key for kind in ("missing_keys", "unexpected_keys") for key in report[kind] if not _VQ.match(key))
    if wrong:
        raise RewindError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or "
            f"of another shape, e.g. '{wrong[0]}'"
        )
    if spread:
        _spread_head_norms(model, folder, spread)
    _put(model.model.vqmodel.float(), vq.encoder, f"the VQ tokenizer in {vq.where}")
    model.eval()
    return model, _decoder(model.config.vq_config, vq, folder)


def _key(entry: Any) -> str:
    """transformers names a mismatched tensor by itself or with its two shapes."""
    return str(entry if isinstance(entry, str) else entry[0])


def _vq_weights(folder: Path, vq_folder: Path | None) -> VQWeights:
    """VQ weights of the folder that was named for them, the rest from the checkpoint's own."""
    own = read_vq(folder)
    if vq_folder is None:
        found = own
    else:
        other = read_vq(vq_folder)
        if not other.encoder and not other.decoder:
            raise RewindError(f"{vq_folder} holds no VQ tokenizer: neither safetensors with one nor vqgan.ckpt")
        both = other.encoder or own.encoder
        found = VQWeights(both, other.decoder, other.config, other.where)
    if not found.encoder:
        raise RewindError(
            f"{folder} has no weights of a VQ image tokenizer: name the folder or Hub id that has them, --vq FOLDER "
            "(Meta's vqgan.ckpt, or an Anole checkpoint)"
        )
    return found


def _put(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    own = module.state_dict()
    misfits = set(own) ^ set(weights) or {key for key, value in own.items() if value.shape != weights[key].shape}
    if misfits:
        raise RewindError(
            f"{what} does not fit the vq_config in config.json: {len(misfits)} tensors are missing, left over or of "
            f"another shape, e.g. '{min(misfits)}'"
        )
    module.load_state_dict(weights)


def _decoder(vq_config: ChameleonVQVAEConfig, vq: VQWeights, folder: Path) -> VQDecoder | None:
    if not vq.decoder:
        return None
    decoder = VQDecoder(vq_config, decoder_config(folder))
    _put(decoder, vq.decoder, f"the VQ decoder in {vq.where}")
    return decoder


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


def decoder_config(folder: Path) -> DecoderConfig | None:
    """The decoder's own sizes if the folder states them; published checkpoints mirror the encoder."""
    file = folder / DECODER_CONFIG_FILE
    if not file.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return DecoderConfig(**settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise RewindError(f"{file} does not describe a VQ decoder: {error}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars, which take a line each for files of a few megabytes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
