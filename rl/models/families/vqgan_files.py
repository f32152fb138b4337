"""The weights of a VQGAN beside a language model: found, checked, put into transformers' encoder and our decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig
from transformers.utils import logging as transformers_logging

from rl.errors import RewindError
from rl.models.vq import DecoderConfig, VQDecoder
from rl.models.vq_files import VQWeights, read_vq

DECODER_CONFIG_FILE = "decoder_config.json"


def key_of(entry: Any) -> str:
    """transformers names a mismatched tensor by itself or with its two shapes."""
    return str(entry if isinstance(entry, str) else entry[0])


def vq_weights(
    folder: Path, vq_folder: Path | None, known: str = "Meta's vqgan.ckpt, or an Anole checkpoint"
) -> VQWeights:
    """VQ weights of the folder that was named for them, the rest from the checkpoint's own; `known` has them too.

    Raises:
        RewindError: neither has an encoder, or the one that was named has nothing.
    """
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
            f"({known})"
        )
    return found


def put(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load weights that have to fit.

    Raises:
        RewindError: tensors that are missing, left over or of another shape.
    """
    own = module.state_dict()
    misfits = set(own) ^ set(weights) or {key for key, value in own.items() if value.shape != weights[key].shape}
    if misfits:
        raise RewindError(
            f"{what} does not fit the vq_config in config.json: {len(misfits)} tensors are missing, left over or of "
            f"another shape, e.g. '{min(misfits)}'"
        )
    module.load_state_dict(weights)


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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars, which take a line each for files of a few megabytes, and without its table
    of tensors that are missing or left over: families check what it reports, and fill in what they know.
    """
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
