"""Chameleon checkpoints as they are published: transformers' folders with and without a decoder, and what they lack.

A folder of `facebook/chameleon-7b` has the encoder half of the VQ tokenizer, one in Anole's conversion both halves,
Lumina's none. The VQ tokenizer is read by itself, in float32: in the bfloat16 of the language model some codes change.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from rl.errors import RewindError
from rl.models.families.vqgan_files import decoder_of, encoder_of, key_of, quiet_transformers, vq_weights
from rl.models.settings import Settings
from rl.models.text_tokenizer import BEGIN_TEXT, END_TEXT, IMAGE, PAD
from rl.models.vq import VQDecoder
from rl.models.vq_files import SIZES, vq_config_of
from rl.running.files import read_json

RAW_TOKENIZER_FILE, RAW_IMAGE = "text_tokenizer.json", "<reserved08707>"
_VQ = re.compile(r"(model\.)?vqmodel\.")
_HEAD_NORM = re.compile(r"\.[qk]_norm\.(weight|bias)$")
_logger = logging.getLogger("rl")


def open_folder(
    folder: Path,
    settings: Settings,
    vq_folder: Path | None,
    left_out: tuple[str, ...] = (),
    look: Callable[[ChameleonConfig], object] | None = None,
) -> tuple[ChameleonForConditionalGeneration, VQDecoder | None]:
    """The transformers model, its VQ tokenizer in float32, and the decoder, None where nobody has one.

    Args:
        folder: a transformers checkpoint in safetensors.
        settings: how it is opened.
        vq_folder: where the VQ weights are, if not in the folder.
        left_out: prefixes of tensors that are not read, which is logged: heads that a family has beside its words.
        look: called with the config before the language model is read, to refuse what it cannot do.

    Raises:
        RewindError: weights that do not fit the config, or no VQ tokenizer.
    """
    config = ChameleonConfig.from_pretrained(folder, local_files_only=True)
    if not config.vocabulary_map:
        raise RewindError(f"{folder}/config.json has no vocabulary_map: this is no Chameleon checkpoint")
    vq = vq_weights(folder, vq_folder)
    told = read_json(folder / "config.json").get("vq_config") or {}
    sizes = {key: value for key, value in {**vq_config_of(told), **vq.config}.items() if key in SIZES}
    if any(getattr(config.vq_config, key, None) != value for key, value in sizes.items()):
        config.vq_config = ChameleonVQVAEConfig(**{**config.vq_config.to_dict(), **sizes})
    if look is not None:
        look(config)
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
    others = {key for key in report["unexpected_keys"] if key.startswith(left_out)}
    strange = {key for kind in ("missing_keys", "unexpected_keys") for key in report[kind]} - others
    wrong += sorted(key for key in strange if not _VQ.match(key))
    if wrong:
        raise RewindError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or "
            f"of another shape, e.g. '{wrong[0]}'"
        )
    if others:
        found = ", ".join(f"{prefix}*" for prefix in left_out if any(key.startswith(prefix) for key in others))
        _logger.warning("%s: %d tensors are left out (%s), which no role here needs", folder, len(others), found)
    if spread:
        _spread_head_norms(model, folder, spread)
    # One of its own: that of a divided model may lie on the disk, and is moved to where the model has it at every call.
    model.model.vqmodel = encoder_of(config.vq_config, vq)
    model.eval()
    return model, decoder_of(model.config.vq_config, vq, folder)


def open_tokenizer(folder: Path, vq_folder: Path | None = None) -> PreTrainedTokenizerFast:
    """The text tokenizer of a checkpoint, with the markers that its configs may leave out.

    A folder without one (most of Lumina's) takes that of the folder that was named for the VQ tokenizer, in
    transformers' form or as Meta's `text_tokenizer.json`.

    Raises:
        RewindError: no tokenizer in either.
    """
    for place in [folder] if vq_folder is None else [folder, vq_folder]:
        if (place / "tokenizer.json").is_file():
            return _with_markers(PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True))
        for raw in (place, place / "tokenizer", place / "chameleon" / "tokenizer"):
            if (raw / RAW_TOKENIZER_FILE).is_file():
                return raw_tokenizer(raw / RAW_TOKENIZER_FILE)
    raise RewindError(
        f"{folder} has no tokenizer.json: name a folder or Hub id that has one (or Meta's {RAW_TOKENIZER_FILE}) with "
        "its VQ tokenizer, --vq FOLDER"
    )


def raw_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Meta's `text_tokenizer.json`, with the reserved name that transformers calls `<image>` renamed as there."""
    told = read_json(file)
    try:
        vocabulary = told["model"]["vocab"]
        if IMAGE not in vocabulary:
            vocabulary[IMAGE] = vocabulary.pop(RAW_IMAGE)
        for token in told["added_tokens"]:
            token["content"] = IMAGE if token["content"] == RAW_IMAGE else token["content"]
    except (KeyError, TypeError) as error:
        raise RewindError(f"{file} is no Chameleon tokenizer: {error} is missing") from error
    try:
        found = Tokenizer.from_str(json.dumps(told))
    except Exception as error:  # the kind that tokenizers raises
        raise RewindError(f"{file} is no tokenizer: {' '.join(str(error).split())[:200]}") from error
    return _with_markers(PreTrainedTokenizerFast(tokenizer_object=found, clean_up_tokenization_spaces=False))


def _with_markers(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    names = {"bos_token": BEGIN_TEXT, "eos_token": END_TEXT, "pad_token": PAD, "unk_token": "<unk>"}
    vocabulary = tokenizer.get_vocab()
    for kind, name in names.items():
        if getattr(tokenizer, kind) is None and name in vocabulary:
            setattr(tokenizer, kind, name)
    return tokenizer


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
                if place.is_meta:
                    raise RewindError(
                        f"{folder} stores norms once for several heads, which cannot be read from the disk at every "
                        "step: convert it first (scripts/convert.py), or leave its layers off the disk in device_map"
                    )
                if stored.dim() != 2 or place.shape[0] % stored.shape[0] or place.shape[1:] != stored.shape[1:]:
                    raise RewindError(f"'{key}' in {folder} is {list(stored.shape)} and should be {list(place.shape)}")
                with torch.no_grad():
                    place.copy_(stored.repeat_interleave(place.shape[0] // stored.shape[0], 0))
