"""Where the weights of a VQ image tokenizer are found: inside a checkpoint, beside it, or in taming's `vqgan.ckpt`.

Published layouts: transformers keeps the encoder half behind `model.vqmodel.`; Anole's conversion keeps the decoder
there too (`model.vqmodel.decoder.`); a VQGAN by itself has no prefix; Meta's `vqgan.ckpt` is a pickle of tensors, read
with `weights_only`. Names behind the prefix are taming-transformers' in all of them (VQGAN, arXiv 2012.09841).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rl.errors import RewindError
from rl.models.known import VQ_CONFIG_FILE
from rl.models.pickles import tensors_of
from rl.running.files import read_json

DECODER_FILE, VQ_FILE = "decoder.safetensors", "vq.safetensors"
CKPT_FILE, YAML_FILE = "vqgan.ckpt", "vqgan.yaml"
PREFIXES = ("model.vqmodel.", "vqmodel.", "")
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_OLD_NAMES = {  # of taming's and Lumina's configs
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "out_ch": "out_channels",
    "n_embed": "num_embeddings",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
}
SIZES = {
    *_OLD_NAMES.values(),
    *("embed_dim", "resolution", "in_channels", "num_res_blocks", "dropout", "attn_resolutions", "attn_type"),
}
"""Fields of `ChameleonVQVAEConfig` on which the shapes of the weights depend, and the picture's size."""


@dataclass(frozen=True)
class VQWeights:
    """Weights of a VQ image tokenizer, float32.

    `encoder` has the names of transformers' `ChameleonVQVAE` (`encoder.*`, `quantize.*`, `quant_conv.*`,
    `post_quant_conv.*`), `decoder` those of `VQDecoder`; each is empty where `where` has no such part. `config` is what
    the files say of its sizes, in the names of `ChameleonVQVAEConfig`.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    config: dict[str, Any]
    where: Path


def vq_config_of(values: dict[str, Any]) -> dict[str, Any]:
    """A VQ tokenizer's config with today's names: published ones often have taming's, which transformers ignores."""
    renamed = {_OLD_NAMES[key]: value for key, value in values.items() if key in _OLD_NAMES}
    return {key: value for key, value in values.items() if key not in _OLD_NAMES} | renamed


def read_vq(folder: Path) -> VQWeights:
    """The VQ weights of a folder, empty parts where it has none.

    Looks into its safetensors files, then for `decoder.safetensors`, then for `vqgan.ckpt` (with `vqgan.yaml`) in it or
    in its folders `tokenizer` and `chameleon/tokenizer`.

    Raises:
        RewindError: a file that cannot be read, or a pickle that holds more than tensors.
    """
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    for name, tensor in _in_safetensors(folder):
        part, key = (decoder, name.removeprefix("decoder.")) if name.startswith("decoder.") else (encoder, name)
        part[key] = tensor.float()
    if (folder / DECODER_FILE).is_file():
        decoder = {name: tensor.float() for name, tensor in _tensors(folder / DECODER_FILE, ("",), None)}
    found = VQWeights(encoder, decoder, _json_config(folder) if encoder else {}, folder)
    for place in (folder, folder / "tokenizer", folder / "chameleon" / "tokenizer"):
        if not (encoder and decoder) and (place / CKPT_FILE).is_file():
            found = _in_ckpt(place)
            break
    return found


def _in_safetensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names without their prefix, and tensors, of a VQ tokenizer that lies among a folder's safetensors files."""
    for file in sorted(folder.glob("*.safetensors")):
        if file.name not in (DECODER_FILE, "adapter_model.safetensors"):
            yield from _tensors(file, PREFIXES, PARTS)


def _tensors(file: Path, prefixes: tuple[str, ...], parts: tuple[str, ...] | None) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(str(file), "pt") as found:
            for key in found.keys():  # noqa: SIM118  (not a dict)
                prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
                name = key.removeprefix(prefix)
                if parts is None or name.startswith(parts):
                    yield name, found.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise RewindError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _in_ckpt(folder: Path) -> VQWeights:
    """Meta's VQGAN: a pickle of tensors in `state_dict`, its sizes in a YAML file beside it."""
    file = folder / CKPT_FILE
    tensors = {key: value.float() for key, value in tensors_of(file).items()}
    decoder = {key.removeprefix("decoder."): value for key, value in tensors.items() if key.startswith("decoder.")}
    encoder = {key: value for key, value in tensors.items() if key.startswith(PARTS) and not key.startswith("decoder.")}
    if not encoder or not decoder:
        raise RewindError(f"{file} holds no VQGAN in taming's layout (encoder.*, decoder.*, quantize.*)")
    return VQWeights(encoder, decoder, _yaml_config(folder / YAML_FILE), file)


def _json_config(folder: Path) -> dict[str, Any]:
    """Sizes from `vq_config.json`, or from the config.json beside the weights, of a VQGAN alone or of a whole model."""
    own, file = folder / VQ_CONFIG_FILE, folder / "config.json"
    told = read_json(own if own.is_file() else file) if own.is_file() or file.is_file() else {}
    whole = own.is_file() or told.get("model_type") == "chameleon_vqgan"
    values = told if whole else told.get("vq_config") or {}
    return {key: value for key, value in vq_config_of(values).items() if key in SIZES}


def _yaml_config(file: Path) -> dict[str, Any]:
    """Sizes from taming's `vqgan.yaml`; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["params"]
        values = {"embed_dim": told["embed_dim"], "n_embed": told["n_embed"], **told["ddconfig"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RewindError(f"{file} does not describe a VQGAN (model.params.ddconfig): {error}") from error
    known = set(_OLD_NAMES) | {"embed_dim", "resolution", "in_channels", "num_res_blocks", "dropout"}
    config = vq_config_of({key: value for key, value in values.items() if key in known})
    return config | {"attn_resolutions": list(values.get("attn_resolutions") or []) or None}


def write_vq_config(folder: Path, config: dict[str, Any]) -> None:
    """Keep the sizes of a VQ tokenizer whose language model's config says nothing of it."""
    kept = {key: value for key, value in config.items() if key in SIZES}
    (folder / VQ_CONFIG_FILE).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
