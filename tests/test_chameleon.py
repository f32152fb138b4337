"""The Chameleon adapter, its VQ decoder and base folders."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny
from safetensors.torch import load_file, save_file
from transformers import ChameleonVQVAEConfig

from rl import load_fdm, load_idm
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM, image_token_name
from rl.models.inputs import token_ids
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics
from rl.models.saving import save_base
from rl.models.vq import DecoderConfig, VQDecoder, latents_before_quantisation, nearest_codes, to_pixels, to_uint8


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_base(make_tiny(known_words=True), tmp_path / "base", {})
    return tmp_path / "base"


def test_image_ids_come_from_the_vocabulary_map(tiny: ChameleonVLM) -> None:
    vocabulary = tiny.model.config.vocabulary_map
    assert image_token_name(12) == "IMGIMGBCZ"
    assert tiny.layout.image_ids_V[12] == vocabulary["IMGIMGBCZ"]
    # transformers reads the same map the same way
    mapping = tiny.model.model.vocabulary_mapping
    codes = torch.arange(16)
    assert torch.equal(mapping.convert_img2bpe(codes).long(), tiny.layout.image_ids_V)


def test_ids_in_any_order(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    """A checkpoint may name its codes in any order and with padded digits, as Anole's does."""
    shuffled = make_tiny()
    vocabulary = {k: v for k, v in shuffled.model.config.vocabulary_map.items() if not k.startswith("IMGIMG")}
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    first = int(tiny.layout.image_ids_V[0])
    padded = {"IMGIMG" + "".join(chr(65 + int(d)) for d in f"{c:04d}") + "Z": first + order[c] for c in range(16)}
    shuffled.model.config.vocabulary_map = vocabulary | padded
    shuffled.model.model.vqmodel = shuffled.vqmodel  # as transformers has it
    again = ChameleonVLM(shuffled.model, shuffled.decoder, shuffled.tokenizer, "shuffled")
    assert again.layout.image_ids_V.tolist() == [first + order[c] for c in range(16)]
    ids = again.encode([picture])
    assert (again.decode(ids) == tiny.decode(tiny.encode([picture]))).all()


def test_transformers_erases_image_logits_and_we_do_not(tiny: ChameleonVLM) -> None:
    """The seam that the adapter exists for (transformers 5.23): image logits are the type's minimum in its forward."""
    ids = torch.tensor([[0, 40, 41, tiny.layout.begin_image]])
    theirs = tiny.model(input_ids=ids).logits[0, -1, tiny.layout.image_ids_V]
    assert bool((theirs == torch.finfo(theirs.dtype).min).all())
    hidden = tiny.hidden_states(ids, use_cache=False).last_hidden_state[0, -1]
    ours = ForwardDynamics(tiny).distribution().log_probs(hidden, tiny.head_weight())
    assert float(ours.exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    assert float(ours.std().detach()) > 0.01


def test_text_logits_equal_transformers(tiny: ChameleonVLM) -> None:
    ids = torch.tensor([[0, 40, 41, 42]])
    theirs = tiny.model(input_ids=ids).logits[0, -1, tiny.layout.text_ids_V]
    hidden = tiny.hidden_states(ids, use_cache=False).last_hidden_state[0, -1]
    assert torch.allclose(hidden @ tiny.head_weight()[tiny.layout.text_ids_V].T, theirs, atol=1e-4)


def test_encoding_equals_transformers(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    pixels = to_pixels(torch.from_numpy(picture)[None])
    with torch.no_grad():
        theirs = tiny.vqmodel.encode(pixels)
    assert tiny.encode([picture])[0].tolist() == tiny.layout.image_ids_V[theirs.image_tokens].tolist()
    features = tiny.features([picture])
    assert features.shape == (1, 4, 16)
    latents = latents_before_quantisation(tiny.vqmodel, pixels)
    assert torch.allclose(features[0], latents[0].flatten(1).T, atol=1e-5)
    codebook = tiny.vqmodel.quantize.embedding.weight
    by_hand = torch.cdist(features[0], codebook).argmin(-1)
    assert nearest_codes(latents.flatten(2).transpose(1, 2), codebook)[0].tolist() == by_hand.tolist()


def test_pixels_round_trip() -> None:
    image = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_pixels(image)), image)


def test_decoder_has_the_names_of_taming_transformers() -> None:
    """Names and shapes of the decoder in Chameleon's VQGAN (f16, 128 channels, 1-1-2-2-4, two blocks)."""
    with torch.device("meta"):
        decoder = VQDecoder(ChameleonVQVAEConfig())
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    assert shapes["conv_in.weight"] == (512, 256, 3, 3)
    assert shapes["mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["up.4.block.0.norm1.weight"] == (512,)
    assert shapes["up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["up.1.upsample.conv.weight"] == (128 * 1, 128, 3, 3)
    assert shapes["up.0.block.2.conv2.bias"] == (128,)
    assert shapes["norm_out.weight"] == (128,)
    assert shapes["conv_out.weight"] == (3, 128, 3, 3)
    assert "up.0.upsample.conv.weight" not in shapes
    assert decoder.norm_out.num_groups == 32


def test_decoder_and_encoder_must_match() -> None:
    with pytest.raises(RewindError, match="has 2 resolutions and the encoder 5"):
        VQDecoder(ChameleonVQVAEConfig(), DecoderConfig(32, (1, 2), 1))


def test_a_base_folder_opens_as_it_was_saved(base: Path, picture: np.ndarray) -> None:
    before, after = make_tiny(), load_base(base)
    assert sorted(p.suffix for p in base.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")) == []
    ids = before.encode([picture])
    assert torch.equal(after.encode([picture]), ids)
    assert (after.decode(ids) == before.decode(ids)).all()
    action = "move the red circle left"
    a, b = (ForwardDynamics(v).sample(picture, action, 2, seed=1) for v in (before, after))
    assert [c.ids.tolist() for c in a] == [c.ids.tolist() for c in b]


def test_markers_in_a_sentence_stay_text(tiny: ChameleonVLM) -> None:
    ids = tiny.text_ids("<racm3:break> <eoss> </s> <pad> <image> IMGIMGAZ")
    special = {0, tiny.layout.begin_image, tiny.layout.end_image, tiny.layout.end_text, tiny.layout.pad}
    assert not special & set(ids)
    assert not set(tiny.layout.image_ids_V.tolist()) & set(ids)


@pytest.mark.parametrize("text", ["move the red circle left", "Zebras, naïve 漢字 & 3.5!", "a1 b2"])
def test_any_words_come_back(tiny: ChameleonVLM, text: str) -> None:
    assert tiny.text(tiny.text_ids(text)) == text


def test_new_words_give_one_warning(base: Path) -> None:
    vlm = load_base(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm.text_ids("Move the RED circle left!")
    with pytest.warns(UserWarning, match="has never read 'zebra' in its training text"):
        vlm.text_ids("move the zebra left")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm.text_ids("move the unicorn left")


def test_both_roles_on_one_backbone(base: Path) -> None:
    fdm = load_fdm(base)
    idm = load_idm(base, backbone=fdm.backbone)
    assert idm.backbone is fdm.backbone


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(path: Path, *names: str) -> None:
    save_file({k: v for k, v in load_file(path).items() if k not in names}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda b: (b / "model.safetensors").unlink(), "no weights in safetensors"),
        (lambda b: [p.unlink() for p in b.glob("*.safetensors")], "no weights in safetensors"),
        (lambda b: edit(b / "config.json", model_type="llama"), "holds a 'llama' checkpoint"),
        (lambda b: edit(b / "rewind.json", family="emu3"), "holds a 'chameleon' checkpoint"),
        (lambda b: (b / "config.json").write_text("{"), "not readable JSON"),
        (lambda b: edit(b / "decoder_config.json", base_channels=64), "does not fit the vq_config"),
        (lambda b: edit(b / "decoder_config.json", depth=64), "does not describe a VQ decoder"),
        (lambda b: drop(b / "model.safetensors", "lm_head.weight", "model.norm.weight"), "1 tensors are missing"),
        (lambda b: edit(b / "config.json", intermediate_size=96), "do not fit its config.json"),
        (lambda b: (b / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors cannot be read"),
        (lambda b: (b / "decoder.safetensors").write_bytes(b"x" * 100), "decoder.safetensors cannot be read"),
        (lambda b: edit(b / "config.json", vocabulary_map={"a": 1}), "is no Chameleon checkpoint"),
        (lambda b: (b / "config.json").unlink(), "there is no base"),
    ],
)
def test_a_damaged_base_is_one_sentence(base: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    damage(base)
    with pytest.raises(RewindError, match=sentence):
        load_base(base)


def test_weights_of_another_type_draw_too(picture: np.ndarray) -> None:
    vlm = make_tiny()
    vlm.model.to(torch.bfloat16)
    candidate = ForwardDynamics(vlm).sample(picture, "remove all rings")[0]
    assert np.asarray(candidate.image).shape == (32, 32, 3)
    assert vlm.features([picture]).dtype == torch.float32  # the image tokenizer keeps its own type


def test_a_candidate_of_another_base_is_read_as_a_picture(picture: np.ndarray) -> None:
    drawer, reader = make_tiny(1), make_tiny(2)
    candidate = ForwardDynamics(drawer).sample(picture, "remove all rings")[0]
    assert token_ids(drawer, [candidate])[0] == candidate.ids.tolist()
    again = reader.encode([np.asarray(candidate.image)])[0].tolist()
    assert token_ids(reader, [candidate])[0] == again != candidate.ids.tolist()


def test_ids_of_another_base_are_refused(tiny: ChameleonVLM) -> None:
    with pytest.raises(RewindError, match="token 3 is no image token"):
        tiny.decode(torch.full((1, 4), 3))


def test_no_picture_is_encoded_twice(picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = make_tiny()
    other = 255 - picture
    whole = vlm.encode([picture, other, picture])
    assert torch.equal(whole[0], whole[2])
    counted: list[int] = []
    encode = vlm.features_pixels

    def count(images: torch.Tensor) -> torch.Tensor:
        counted.append(len(images))
        return encode(images)

    monkeypatch.setattr(vlm, "features_pixels", count)
    assert torch.equal(vlm.encode([other, picture]), whole[[1, 0]])
    features = vlm.features([picture, other])
    assert counted == []
    assert torch.equal(vlm.quantise(features), whole[:2])
    vlm.remembered_features = 1
    vlm.features([picture // 3])
    assert torch.equal(vlm.features([picture // 3]), vlm.features([picture // 3]))  # too large to be kept
    assert counted == [1, 1, 1]
    counted.clear()
    vlm.remembered_pictures = 1
    third = vlm.encode([picture // 2])  # pushes the older ones out
    assert torch.equal(vlm.encode([picture, picture // 2]), torch.cat([whole[:1], third]))
    assert counted == [1, 1]
