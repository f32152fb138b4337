"""The weights of a VQGAN beside a language model: found, checked, put into transformers' encoder and our decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.utils import logging as transformers_logging

from rl.errors import RewindError
from rl.models.vq import DecoderConfig, VQDecoder
from rl.models.vq_files import DECODER_FILE, VQWeights, read_vq

DECODER_CONFIG_FILE = "decoder_config.json"


def key_of(entry: Any) -> str:
    """transformers names a mismatched tensor by itself or with its two shapes."""
    return str(entry if isinstance(entry, str) else entry[0])


def vq_weights(
    folder: Path, vq_folder: Path | None, known: str = "Meta's vqgan.ckpt, or an Anole checkpoint"
) -> VQWeights:
    """VQ weights of the folder that was named for them, the rest from the checkpoint's own; `known` has them too.

    Raises:
        RewindError: there are none, or none in the folder that was named.
    """
    own = read_vq(folder)
    if vq_folder is None:
        found = own
    else:
        other = read_vq(vq_folder)
        if not other.encoder and not other.decoder:
            raise RewindError(f"{vq_folder} holds no VQ tokenizer: neither safetensors with one nor vqgan.ckpt")
        if own.encoder and other.encoder and not _same_codebook(own, other):
            raise RewindError(
                f"the VQ tokenizer in {other.where} is another one than that of {folder}: their codebooks differ, so "
                "the model's codes would be other pictures"
            )
        both = other.encoder or own.encoder
        found = VQWeights(both, other.decoder, other.config, other.where)
    if not found.encoder:
        raise RewindError(
            f"{folder} has no weights of a VQ image tokenizer: name the folder or Hub id that has them, --vq FOLDER "
            f"({known})"
        )
    return found


def _same_codebook(one: VQWeights, other: VQWeights) -> bool:
    """Equal but for a rounding to bfloat16, in which some copies are stored."""
    a, b = (vq.encoder.get("quantize.embedding.weight", torch.empty(0)) for vq in (one, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.01, atol=1e-6)


def check_fit(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Raise a `RewindError` unless weights have the names and shapes of a module's."""
    own = module.state_dict()
    misfits = set(own) ^ set(weights) or {key for key, value in own.items() if value.shape != weights[key].shape}
    if misfits:
        raise RewindError(
            f"{what} does not fit the vq_config in config.json: {len(misfits)} tensors are missing, left over or of "
            f"another shape, e.g. '{min(misfits)}'"
        )


def put(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load weights that have to fit (`check_fit`)."""
    check_fit(module, weights, what)
    module.load_state_dict(weights)


def encoder_of(vq_config: ChameleonVQVAEConfig, vq: VQWeights) -> ChameleonVQVAE:
    """The encoder half by itself, float32, without random numbers being drawn for it."""
    with torch.device("meta"):
        module = ChameleonVQVAE(vq_config)
    check_fit(module, vq.encoder, f"the VQ tokenizer in {vq.where}")
    module.load_state_dict(vq.encoder, assign=True)
    return module.eval()


def check_encoder(vq_config: ChameleonVQVAEConfig, vq: VQWeights) -> None:
    """Raise a `RewindError` unless the encoder half has the shapes that a config states."""
    with torch.device("meta"):
        module = ChameleonVQVAE(vq_config)
    check_fit(module, vq.encoder, f"the VQ tokenizer in {vq.where}")


def decoder_of(vq_config: ChameleonVQVAEConfig, vq: VQWeights, folder: Path) -> VQDecoder | None:
    """The decoder, with the sizes that the folder states or that mirror the encoder; None where nobody has one."""
    if not vq.decoder:
        return None
    decoder = VQDecoder(vq_config, decoder_config(folder))
    put(decoder, vq.decoder, f"the VQ decoder in {vq.where}")
    return decoder


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


def write_decoder(decoder: VQDecoder, folder: Path) -> None:
    """Write a decoder's weights and sizes into a base folder."""
    save_file(decoder.state_dict(), folder / DECODER_FILE)
    settings = json.dumps(asdict(decoder.config), indent=1)
    (folder / DECODER_CONFIG_FILE).write_text(settings + "\n", encoding="utf-8")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars, which take a line each for files of a few megabytes, and without its
    report of tensors that do not fit, which are looked at here.
    """
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
