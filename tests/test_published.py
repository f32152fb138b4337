"""One contract for every published layout: pictures, words, sampling, reranking; and what the builder claims."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from published import Shelf, index_text
from published_parts import CODES, FIRST_CODE, FIRST_WORD, LM_OF_LAYER, NEW_VQ_NAMES, vq_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_sampler import slow_sample
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, interpolate, silu
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAE, ChameleonVQVAEConfig

from rl import RewindError, rerank
from rl.models.families.chameleon import ChameleonVLM
from rl.models.noise import Noise
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.settings import Settings
from rl.models.vq import VQDecoder, to_pixels, to_uint8

ACTION = SENTENCES[0]
LAYOUTS = {  # name -> checkpoint, where else its VQ tokenizer is, whether there is a decoder
    "chameleon 7b": ("chameleon-7b", None, False),
    "chameleon 30b": ("chameleon-30b", None, False),
    "chameleon 7b with vqgan.ckpt": ("chameleon-7b", "vqgan", True),
    "chameleon 30b with the VQGAN's own folder": ("chameleon-30b", "vqvae", True),
    "anole": ("anole", None, True),
    "lumina with the VQGAN's own folder": ("lumina", "vqvae", True),
    "lumina with Meta's tokenizers": ("lumina-without-tokenizer", "meta-7b", True),
    "meta 7b": ("converted meta-7b", None, True),
    "meta 30b": ("converted meta-30b", None, True),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=list(LAYOUTS))
def vlm(request: pytest.FixtureRequest, shelf: Shelf) -> ChameleonVLM:
    """A base as it opens: bfloat16, its VQ tokenizer float32."""
    name, vq, draws = LAYOUTS[request.param]
    found = load_base(shelf[name], vq=None if vq is None else shelf[vq])
    assert isinstance(found, ChameleonVLM)
    assert found.can_draw == draws
    return found


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def reference() -> ChameleonVQVAE:
    model = ChameleonVQVAE(ChameleonVQVAEConfig(**NEW_VQ_NAMES)).eval()
    model.load_state_dict(vq_weights()[0])
    return model


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

    x = block(conv(latents, "conv_in"), "mid.block_1")
    q, k, v = (conv(norm(x, "mid.attn_1.norm"), f"mid.attn_1.{name}").flatten(2) for name in "qkv")
    attention = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
    x = x + conv((v @ attention.transpose(1, 2)).view_as(x), "mid.attn_1.proj_out")
    x = block(x, "mid.block_2")
    for level in reversed(range(5)):
        for number in range(3):
            x = block(x, f"up.{level}.block.{number}")
        if level:
            x = conv(interpolate(x, scale_factor=2.0, mode="nearest"), f"up.{level}.upsample.conv")
    return conv(silu(norm(x, "norm_out")), "conv_out")


@torch.no_grad()
def test_pictures_are_read_in_float32(vlm: ChameleonVLM, pictures: list[np.ndarray], reference: ChameleonVQVAE) -> None:
    """Beside a bfloat16 language model: the ids of transformers' own encoder in float32, and the nearest codes."""
    assert vlm.model.dtype == torch.bfloat16
    assert {p.dtype for p in vlm.vqmodel.parameters()} == {torch.float32}
    assert (vlm.image_size, vlm.layout.tokens_per_image) == (64, 16)
    pixels = to_pixels(torch.from_numpy(np.stack(pictures)))
    ids = vlm.encode(pictures)
    assert (ids - FIRST_CODE).flatten().tolist() == reference.encode(pixels).image_tokens.flatten().tolist()
    latents = reference.quant_conv(reference.encoder(pixels)).flatten(2).transpose(1, 2)
    by_hand = torch.cdist(latents.double(), vq_weights()[0]["quantize.embedding.weight"].double()[None]).argmin(-1)
    assert (ids - FIRST_CODE).tolist() == by_hand.tolist()
    assert len(set(ids.flatten().tolist())) > 30  # the codes do depend on the picture


@torch.no_grad()
def test_pictures_are_drawn(vlm: ChameleonVLM, pictures: list[np.ndarray]) -> None:
    """By the formula, where there is a decoder; else one sentence that says what to do."""
    ids = vlm.encode(pictures)
    if not vlm.can_draw:
        with pytest.raises(RewindError, match=r"has no VQ decoder.*--vq FOLDER"):
            vlm.decode(ids)
        return
    encoder, decoder = vq_weights()
    codes = encoder["quantize.embedding.weight"][ids - FIRST_CODE].transpose(1, 2).unflatten(2, (4, 4))
    latents = conv2d(codes, encoder["post_quant_conv.weight"], encoder["post_quant_conv.bias"])
    drawn = vlm.decode(ids)
    assert drawn.shape == (3, 64, 64, 3)
    wanted = to_uint8(taming(latents, decoder)).numpy()
    assert np.abs(drawn.astype(int) - wanted).max() <= 1  # a rounding
    assert wanted.std() > 20


def test_words_are_words(vlm: ChameleonVLM, pictures: list[np.ndarray]) -> None:
    """Markers come from the tokenizer, not from the config; reserved names, codes and markers are no words."""
    layout = vlm.layout
    end = 8710 if vlm.family == "lumina" else 2  # its answers end in the separator of turns
    markers = (layout.begin_text, layout.pad, layout.end_text, layout.begin_image, layout.end_image)
    assert markers == (0, 1, end, 8197, 8196)
    assert layout.image_ids_V.tolist() == list(range(FIRST_CODE, FIRST_CODE + CODES))
    assert layout.text_ids_V.tolist() == [end, *range(FIRST_WORD, vlm.head_weight().shape[0])]
    assert vlm.model.config.bos_token_id == vlm.model.generation_config.bos_token_id == 0
    said = vlm.text_ids("<s> <racm3:break> <reserved08706> <image> IMGIMGAZ </s> move")
    assert min(said) >= FIRST_WORD
    assert vlm.text(vlm.text_ids(ACTION)) == ACTION
    with torch.no_grad():
        wild = InverseDynamics(vlm).describe(pictures[:2], pictures[1:], temperature=1.0, max_tokens=20, seed=1)
    assert all("reserved" not in text and "IMGIMG" not in text and text for text in wild)


@torch.no_grad()
def test_sampler_scorer_and_rerank(vlm: ChameleonVLM, pictures: list[np.ndarray]) -> None:
    """In float32, since half precision rounds another way in batches: sampler against the slow reference, best of 3."""
    vlm.model.float()
    fdm, idm = ForwardDynamics(vlm), InverseDynamics(vlm)
    prompt = vlm.fdm_prompt(vlm.encode(pictures[:1])[0].tolist(), ACTION)
    drawn = fdm.sample(pictures[0], ACTION, 3, seed=5)
    ids, logprobs = slow_sample(vlm, prompt, 1, fdm.distribution(), Noise(5), 16, vlm.layout.grammar.after)
    assert drawn[1].ids.tolist() == ids
    assert drawn[1].logprobs.tolist() == pytest.approx(logprobs, abs=1e-3)
    assert fdm.log_probs(pictures[0], drawn, ACTION)[1].tolist() == pytest.approx(logprobs, abs=1e-3)
    found = rerank(fdm, idm, pictures[0], ACTION, 3, seed=5)
    assert found.best.score == pytest.approx(max(idm.score(pictures[0], drawn, ACTION)), abs=1e-3)
    if vlm.can_draw:
        assert np.asarray(found.best.image).shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["chameleon-7b", "anole", "lumina"])
def test_the_builder_names_what_transformers_names(name: str, shelf: Shelf) -> None:
    where = json.loads((shelf[name] / "model.safetensors.index.json").read_text())["weight_map"]
    for file in set(where.values()):
        with safe_open(str(shelf[name] / file), "pt") as found:
            kinds = {key: found.get_slice(key).get_dtype() for key in found.keys()}  # noqa: SIM118
        assert all(kind == ("F32" if "vqmodel" in key else "BF16") for key, kind in kinds.items())
    config = ChameleonConfig.from_pretrained(shelf[name])
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)  # wrong, as published
    with torch.device("meta"):
        theirs = set(ChameleonForConditionalGeneration(config).state_dict())
    decoder = {key for key in where if key.startswith("model.vqmodel.decoder.")}
    assert len(decoder) == (164 if name == "anole" else 0)
    vq = {key for key in theirs if "vqmodel" in key}
    assert set(where) - decoder == (theirs - vq if name == "lumina" else theirs)
    assert len(vq) == 124 + 5


def test_counts_and_index_sizes_are_those_of_the_published_folders() -> None:
    """At full size, without memory: 548 tensors in 46,065 bytes of index, 712 in 60,735, Lumina's 419 in 34.4 kB."""
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(ChameleonConfig(vocabulary_map={"<image>": 8711}))
        decoder = VQDecoder(model.config.vq_config).state_dict()
    whole = model.state_dict() | {f"model.vqmodel.decoder.{name}": tensor for name, tensor in decoder.items()}
    size = {name: t.numel() * (4 if "vqmodel" in name else 2) for name, t in whole.items()}
    chameleon = [name for name in whole if "vqmodel.decoder" not in name]
    lm = [name for name in whole if "vqmodel" not in name]
    assert len(lm) == 3 + 32 * len(LM_OF_LAYER) == 419
    assert (len(chameleon), len(whole)) == (548, 712)
    for names, shards, wanted in ((chameleon, 3, 46_065), (list(whole), 3, 60_735)):
        assert len(index_text(names, shards, sum(size[name] for name in names))) == wanted
    assert len(index_text(lm, 2, sum(size[name] for name in lm))) // 100 == 344
    assert sum(size.values()) // 10**6 == 14_302


def test_stored_norms_are_spread_over_the_heads(shelf: Shelf) -> None:
    for name, stored in (("lumina", 1), ("lumina-without-tokenizer", 2)):
        model = load_base(shelf[name], Settings(dtype="float32"), shelf["meta-7b"]).model
        weight = model.model.layers[1].self_attn.q_norm.weight  # type: ignore[union-attr, index]
        with safe_open(str(shelf[name] / "model-00002-of-00002.safetensors"), "pt") as found:
            told = found.get_tensor("model.layers.1.self_attn.q_norm.weight").float()
        assert told.shape == (stored, 8)
        assert torch.equal(weight, told.repeat_interleave(4 // stored, 0))  # type: ignore[arg-type]


def _other_codebook(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors["quantize.embedding.weight"] += 0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _without_map(folder: Path) -> Path:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "vocabulary_map": None}))
    return folder


@pytest.mark.parametrize(
    ("name", "damage", "vq", "sentence"),
    [
        ("lumina", None, None, r"has no weights of a VQ image tokenizer: name the folder.*--vq FOLDER"),
        ("lumina", None, "lumina", "holds no VQ tokenizer"),
        ("lumina-without-tokenizer", None, "vqvae", r"has no tokenizer.json: name a folder.*--vq FOLDER"),
        ("meta-30b", None, None, r"in Meta's own layout: convert it once, python scripts/convert.py --from "),
        ("anole", _without_map, None, "has no vocabulary_map: this is no Chameleon checkpoint"),
        ("anole", _other_codebook, "vqvae", "is another one than that of .*their codebooks differ"),
    ],
)
def test_what_is_missing_is_one_sentence(
    name: str, damage: Callable[[Path], Path] | None, vq: str | None, sentence: str, shelf: Shelf, tmp_path: Path
) -> None:
    folder, other = shelf[name], None if vq is None else shelf[vq]
    if damage is not None:
        spoilt = shutil.copytree(other or folder, tmp_path / "copy")
        damage(spoilt)
        folder, other = (folder, spoilt) if other else (spoilt, None)
    with pytest.raises(RewindError, match=sentence):
        load_base(folder, vq=other)


def test_a_missing_decoder_is_said_once_and_nothing_else(
    shelf: Shelf, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING, "rl"):
        load_base(shelf["chameleon-7b"])
    assert [r.message.split("has ")[1] for r in caplog.records] == [
        "no VQ decoder: all works but drawing pictures, for which --vq names one"
    ]
    load_base(shelf["anole"])
    assert "UNEXPECTED" not in capfd.readouterr().err
