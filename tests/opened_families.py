"""The families' tiny checkpoints, opened: for reading, for training, and what their pictures have to be."""

from __future__ import annotations

import atexit
import copy
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from conftest import make_tiny
from peft import LoraConfig
from published_families import VQ_SIZES, emu3, liquid, lumina, vqgan, vqgan_weights
from published_robots import emu3_original, emu3_vision, rynnvla, univla
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, interpolate, silu
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3ForConditionalGeneration, Emu3ImageProcessor

from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base
from rl.models.saving import save_base
from rl.models.settings import Settings
from rl.models.unified import UnifiedVLM
from rl.models.vq import decode_codes, to_pixels, to_uint8
from rl.models.vq_files import vq_config_of
from trainers.common.adapters import add_adapter

VQ = {"lumina": "vqgan", "liquid": "vqgan", "univla": "emu3 vision", "emu3 original": "emu3 vision"}
SIZE = {"emu3": 24, "emu3 original": 24, "univla": 24}  # 512 unless asked for: too much for a test


def shipped_like(folder: Path) -> Path:
    """A base as `pretrain_base.py` writes it."""
    save_base(make_tiny(), folder, {})
    return folder


class Shelf:
    """Checkpoint folders by name, each written when it is first asked for."""

    MAKERS: ClassVar[dict[str, Callable[[Path], Path]]] = {
        "chameleon": shipped_like,
        "lumina": lumina,
        "rynnvla": rynnvla,
        "emu3 original": emu3_original,
        "emu3 vision": emu3_vision,
        "univla": univla,
        "liquid": liquid,
        "emu3": emu3,
        "gemma": lambda folder: liquid(folder, words=2048),
        "vqgan": vqgan,
        "vqgan of 4096": lambda folder: vqgan(folder, codes=4096),
    }

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> Path:
        if not (self.root / name).exists():
            self.MAKERS[name](self.root / name)
        return self.root / name


@functools.cache
def shelf() -> Shelf:
    """One for all tests of a process, or of several (`REWIND_TEST_SHELF`)."""
    if "REWIND_TEST_SHELF" in os.environ:
        return Shelf(Path(os.environ["REWIND_TEST_SHELF"]))
    folder = tempfile.mkdtemp(prefix="families-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Shelf(Path(folder))


@functools.cache
def opened(name: str, dtype: str = "float32") -> Any:
    """A base, for reading alone."""
    vq = VQ.get(name)
    settings = Settings(dtype=dtype, image_size=SIZE.get(name))
    return load_base(shelf()[name], settings, vq=None if vq is None else shelf()[vq])


def copied(vlm: Any) -> Any:
    """A copy to train; what no training changes is shared."""
    config = vlm.model.config
    maps = [config.vocabulary_map] if hasattr(config, "vocabulary_map") else []
    shared = [vlm.tokenizer, vlm.layout, vlm.vqmodel, config, *maps]
    return copy.deepcopy(vlm, {id(x): x for x in shared})


def trainable(vlm: Any) -> Any:
    """A copy with a fresh adapter that does change something."""
    made = copied(vlm)
    torch.manual_seed(1)
    add_adapter(made, LoraConfig(r=2, target_modules=list(LINEAR_LAYERS), init_lora_weights=False))
    return made


def pictures(vlm: UnifiedVLM, count: int = 4) -> list[np.ndarray]:
    size = vlm.image_size
    return list(np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def taming(latents: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The decoder of taming-transformers (arXiv 2012.09841) as a formula: 5 resolutions, 3 blocks each."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def block(x: Tensor, name: str) -> Tensor:
        h = conv(silu(norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = conv(silu(norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in weights else x)

    x = block(conv(latents, "decoder.conv_in"), "decoder.mid.block_1")
    q, k, v = (conv(norm(x, "decoder.mid.attn_1.norm"), f"decoder.mid.attn_1.{name}").flatten(2) for name in "qkv")
    attention = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
    x = x + conv((v @ attention.transpose(1, 2)).view_as(x), "decoder.mid.attn_1.proj_out")
    x = block(x, "decoder.mid.block_2")
    for level in reversed(range(5)):
        for number in range(3):
            x = block(x, f"decoder.up.{level}.block.{number}")
        if level:
            x = conv(interpolate(x, scale_factor=2.0, mode="nearest"), f"decoder.up.{level}.upsample.conv")
    return conv(silu(norm(x, "decoder.norm_out")), "decoder.conv_out")


@torch.no_grad()
def reference(vlm: Any, images: list[np.ndarray]) -> tuple[Tensor, np.ndarray]:
    """Codes [B, K] and decoded pixels, by transformers' own classes and, where they have no decoder, by the formula."""
    pixels = to_pixels(torch.from_numpy(np.stack(images)))
    if vlm.family == "chameleon":
        codes = vlm.vqmodel.encode(pixels).image_tokens.view(len(images), -1)
        return codes, to_uint8(decode_codes(vlm.vqmodel, vlm.decoder, codes, 2)).numpy()
    if vlm.family not in ("emu3", "univla"):
        weights, model = vqgan_weights(), ChameleonVQVAE(ChameleonVQVAEConfig(**vq_config_of(VQ_SIZES))).eval()
        model.load_state_dict({name: t for name, t in weights.items() if not name.startswith("decoder.")})
        codes = model.encode(pixels).image_tokens.view(len(images), -1)
        found = weights["quantize.embedding.weight"][codes].transpose(1, 2).unflatten(2, (4, 4))
        latents = conv2d(found, weights["post_quant_conv.weight"], weights["post_quant_conv.bias"])
        return codes, to_uint8(taming(latents, weights)).numpy()
    plain = Emu3ForConditionalGeneration.from_pretrained(shelf()["emu3"])
    processor = Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=64)
    inputs = processor(images, return_tensors="pt")
    assert [list(size) for size in inputs["image_sizes"]] == [[24, 24]] * len(images)
    ids = plain.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"]).view(len(images), -1)
    header, trailer = vlm.layout.grammar.header, vlm.layout.grammar.trailer
    spans = [vlm.image_span(own) for own in vlm.encode(images).tolist()]
    rows = ids if vlm.family == "emu3" else ids.unflatten(1, (3, 4))[..., :3].flatten(1)  # with their ends, or without
    assert spans == [[*header, *row, *trailer] for row in rows.tolist()]
    tail = torch.tensor([[*trailer, vlm.layout.end_text]] * len(images))
    drawn = plain.decode_image_tokens(image_tokens=torch.cat([ids, tail], 1), height=3, width=3)
    codes = plain.vocabulary_mapping.convert_bpe2img(ids.view(-1, 3, 4)).flatten(1)
    return codes, to_uint8(drawn).numpy()
