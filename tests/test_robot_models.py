"""What published models for robots have beside their families: heads that are left out, other grammars, other names."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from opened_families import opened, pictures, shelf
from published_robots import action_head, emu3_ranks
from safetensors.torch import load_file, save_file
from script_runs import start
from test_families_refused import copy_with, refused

from rl import RewindError, rerank
from rl.models.conversion import prepare
from rl.models.families.emu3 import Emu3VLM
from rl.models.families.emu3_stills import latents_of_stills, pixels_of_stills
from rl.models.families.lumina import FDM_QUESTION
from rl.models.families.univla import UniVLM
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.settings import Settings
from rl.models.vq import to_pixels

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rynnvlas_action_head_is_left_out_and_that_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The same model as Lumina's without the head; what is left over otherwise is still refused."""
    with caplog.at_level(logging.WARNING, "rl"):
        vlm = load_base(shelf()["rynnvla"], Settings(dtype="float32"), vq=shelf()["vqgan"])
    heads = action_head()
    assert f"{len(heads)} tensors are left out (action_head.*)" in caplog.text
    plain = opened("lumina")
    assert vlm.family == "lumina"
    assert (vlm.head_weight() == plain.head_weight()).all()
    ids = vlm.encode(pictures(vlm))
    assert (ids == plain.encode(pictures(vlm))).all()
    other = shutil.copytree(shelf()["rynnvla"], tmp_path / "other")
    index = json.loads((other / "model.safetensors.index.json").read_text())
    file = other / index["weight_map"]["action_head.hidden_projection.weight"]
    tensors = load_file(file)
    tensors["value_head.weight"] = tensors["action_head.hidden_projection.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    index["weight_map"]["value_head.weight"] = file.name
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RewindError, match=r"1 tensors are missing, left over or of another shape, e.g. 'value_head"):
        load_base(other, Settings(dtype="float32"), vq=shelf()["vqgan"])


def test_rynnvla_with_the_ranges_of_its_data(tmp_path: Path) -> None:
    """From its folder to a reranked picture: converted once with the ranges, then by a vector."""
    (tmp_path / "ranges.json").write_text('{"q01": [-0.5, -1, 0], "q99": [0.5, 1, 1]}')
    flags = ["--from", shelf()["rynnvla"], "--vq", shelf()["vqgan"], "--action_ranges", tmp_path / "ranges.json"]
    done = start("scripts/convert.py", *flags, "--output", tmp_path / "base")
    assert done.returncode == 0, done.stderr
    assert "tensors are left out (action_head.*)" in done.stderr
    vlm = load_base(tmp_path / "base", Settings(dtype="float32"))
    fdm, idm, image = ForwardDynamics(vlm), InverseDynamics(vlm), pictures(vlm)[0]
    ids = vlm.encode([image])[0].tolist()
    question = [vlm.layout.begin_text, *vlm.text_ids(FDM_QUESTION)]
    bins = [10006, 10006 + 127, 10006 + 255]
    prompt = [*question, *vlm.image_span(ids), 10004, *bins, 15004, 8710, *vlm.layout.grammar.header]
    assert vlm.fdm_prompt(ids, "[-0.5, 0.0, 1.0]") == prompt
    action = "[-0.5, 0.0, 1.0]"
    best = rerank(fdm, idm, image, action, 2)
    assert best.best.score == pytest.approx(max(idm.score(image, fdm.sample(image, action, 2), action)))


# ---- Emu3 in the layout of its own code


@torch.no_grad()
def test_emu3s_own_layout_is_the_same_model(tmp_path: Path) -> None:
    """As transformers' layout of the same weights: codes, pixels, hidden states, prompts; converted, it stays so."""
    plain, images = opened("emu3"), pictures(opened("emu3"))
    ids = plain.encode(images)
    asked = torch.tensor([plain.image_span(row) for row in ids.tolist()])
    prepare(str(shelf()["emu3 original"]), tmp_path, str(shelf()["emu3 vision"])).write(tmp_path / "base")
    for vlm in (opened("emu3 original"), load_base(tmp_path / "base", Settings(image_size=24))):
        assert vlm.family == "emu3"
        assert torch.equal(vlm.encode(images), ids)
        assert (vlm.decode(ids) == plain.decode(ids)).all()
        found, wanted = (v.hidden_states(asked).last_hidden_state for v in (vlm, plain))
        assert torch.equal(found, wanted)
        assert torch.equal(vlm.head_weight(), plain.head_weight())
        assert torch.equal(vlm.layout.image_ids_V, plain.layout.image_ids_V)
        assert torch.equal(vlm.layout.text_ids_V, plain.layout.text_ids_V)
        assert vlm.layout.end_text == plain.layout.end_text == 151850
        header = vlm.tokenizer.encode("<|image start|>3*3<|image token|>", add_special_tokens=False)
        assert list(vlm.layout.grammar.header) == header
        assert vlm.text(vlm.action_ids("lift the cup")) == "lift the cup"
    assert "vocabulary_map" in json.loads((tmp_path / "base" / "config.json").read_text())


def by_ranks(text: str) -> list[int]:
    """Byte-pair encoding from ranks as a formula: within each piece of a text, the pair of lowest rank is joined."""
    ranks = {word: rank for rank, word in enumerate(emu3_ranks())}
    pieces = regex.findall(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        text,
    )
    found = []
    for piece in pieces:
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            rank, place = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
            if rank == 1 << 30:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        found += [ranks[part] for part in parts]
    return found


@pytest.mark.parametrize(
    "text", ["move the red circle left", "it's 25*25,\n\n put  the cup on 128", "Äpfel 3½ 漢字 don't"]
)
def test_emu3s_own_tokenizer_by_its_ranks(text: str) -> None:
    vlm = opened("emu3 original")
    assert vlm.text_ids(text) == by_ranks(text)
    assert vlm.text(by_ranks(text)) == text
    assert not {151643, 151852} & set(vlm.text_ids("<|image start|><|endoftext|>"))  # spelled out, they are words


def test_sizes_of_emu3s_own_layouts(tmp_path: Path) -> None:
    """Stage1 has positions for two pictures of 384 pixels; none without the VQ tokenizer; Emu3.5 is another model."""
    config = opened("emu3 original").model.config
    assert Emu3VLM.usual_size(config) == 512
    config = type(config)(**config.to_dict())
    config.text_config.max_position_embeddings = 5120
    assert Emu3VLM.usual_size(config) == 384
    source = shelf()["emu3 original"]
    refused(source, r"no weights of a VQ image tokenizer: .*--vq FOLDER \(BAAI/Emu3-VisionTokenizer\)")
    newer = copy_with(tmp_path / "newer", source, vocab_size=282926, hidden_size=5120)
    refused(newer, r"Emu3's kind with 282926 ids, whose code is not run \(Emu3.5", shelf()["emu3 vision"])
    scaled = copy_with(tmp_path / "scaled", source, rope_scaling={"type": "linear", "factor": 2.0})
    refused(scaled, "scales RoPE", shelf()["emu3 vision"])
    (scaled / "emu3.tiktoken").unlink()
    copy_with(tmp_path / "without", scaled, rope_scaling=None)
    refused(tmp_path / "without", "lacks emu3.tiktoken, Emu3's tokenizer", shelf()["emu3 vision"])
    broken = copy_with(tmp_path / "broken", tmp_path / "without")
    (broken / "emu3.tiktoken").write_text("IQ== no\n")
    refused(broken, "is no file of ranks", shelf()["emu3 vision"])
    refused(source, "does not fit the vq_config", shelf()["vqgan"], image_size=24)


@torch.no_grad()
def test_a_still_of_emu3_is_computed_once() -> None:
    """With the numbers of transformers' class, which computes four equal frames."""
    vq, images = opened("emu3").vqmodel, pictures(opened("emu3"))
    pixels = to_pixels(torch.from_numpy(np.stack(images)))
    slow = vq.quant_conv(vq.encoder(pixels[:, None].repeat(1, 4, 1, 1, 1)).transpose(1, 2))[:, :, 0]
    fast = latents_of_stills(vq, pixels)
    assert float((fast - slow).abs().max()) <= 1e-6
    codes = vq.quantize(fast[:, None])[:, 0]
    assert torch.equal(codes, vq.quantize(slow[:, None])[:, 0])
    assert float((pixels_of_stills(vq, codes) - vq.decode(codes)).abs().max()) <= 1e-5


# ---- UniVLA


def test_univla_by_the_published_numbers() -> None:
    vlm = opened("univla")
    layout, ids = vlm.layout, opened("univla").encode(pictures(vlm)[:1])[0].tolist()
    header = vlm.tokenizer.encode("<|image start|>1*3*3<|image token|>", add_special_tokens=False)
    assert vlm.image_span(ids) == [*header, *ids, 151847, 151853]  # no ends of rows
    assert (layout.begin_text, layout.end_text, layout.pad) == (151849, 151850, 151643)
    assert UniVLM.usual_size(vlm.model.config) == 200  # 25 x 25 codes
    words = vlm.text_ids("lift the cup")
    assert vlm.fdm_prompt(ids, "lift the cup") == [151849, *words, *vlm.image_span(ids), *header]
    assert vlm.model.config.text_config.attention_dropout == 0.0
