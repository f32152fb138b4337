"""A small base of Liquid's kind, Gemma's classes with the shipped VQ tokenizer: made, opened, trained, merged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from script_runs import succeed
from test_pretraining import arguments
from transformers import AutoModelForCausalLM, GemmaForCausalLM

from rl import load_fdm, load_idm
from rl.errors import RewindError
from rl.models.opening import load_base
from rl.models.unified import UnifiedVLM
from rl.models.vq import codes_of
from rl.worlds.tabletop import Tabletop
from trainers.pretraining.recipe import make_base

SHIPPED_VQ = {"tokenizer_from": Path("tabletop-chameleon"), "tokenizer_steps": 0, "family": "liquid"}


@pytest.fixture(scope="module")
def liquid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("liquid") / "base"
    make_base(arguments(output, **SHIPPED_VQ, steps=12, num_layers=2))
    return output


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    world, rng = Tabletop(), np.random.default_rng(0)
    return [world.render(world.sample_scene(rng), rng) for _ in range(3)]


def test_it_opens_as_liquid_with_the_shipped_tokenizer(
    liquid: Path, scenes: list[np.ndarray], shipped: UnifiedVLM
) -> None:
    vlm = load_base(liquid)
    assert vlm.family == "liquid"
    assert vlm.template == shipped.template  # words first: the two families differ in the model alone
    ours, theirs = (v.encode(scenes) for v in (vlm, shipped))
    assert torch.equal(codes_of(ours, vlm.layout.image_ids_V), codes_of(theirs, shipped.layout.image_ids_V))
    assert (vlm.decode(ours)[0] == shipped.decode(theirs)[0]).all()
    words = vlm.text_ids("move the red circle left")
    assert vlm.text(words) == "move the red circle left"
    assert set(words) <= set(vlm.layout.text_ids_V.tolist())
    markers = {vlm.layout.begin_text, vlm.layout.pad, vlm.layout.begin_image, vlm.layout.end_image}
    assert not markers & {*vlm.layout.text_ids_V.tolist(), *vlm.layout.image_ids_V.tolist()}
    assert isinstance(AutoModelForCausalLM.from_pretrained(liquid), GemmaForCausalLM)


def test_its_loss_falls(liquid: Path) -> None:
    rows = [json.loads(line) for line in (liquid / "training/language/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


def test_both_roles_train_on_it_and_a_run_is_merged(liquid: Path, scenes: list[np.ndarray], tmp_path: Path) -> None:
    succeed("scripts/make_world.py", "--num_triplets", 8, "--num_videos", 0, "--output", tmp_path / "world")
    flags = ["--base", liquid, "--triplets", tmp_path / "world/triplets.json", "--max_steps", 2, "--lora_r", 2]
    flags += ["--per_device_train_batch_size", 2, "--with_idm", "true", "--output_dir", tmp_path / "fdm"]
    succeed("scripts/train_fdm.py", *flags)
    succeed("scripts/export.py", "--run", tmp_path / "fdm", "--output", tmp_path / "plain")
    fdm = load_fdm(tmp_path / "fdm")
    idm = load_idm(tmp_path / "fdm" / "idm", backbone=fdm.backbone)
    drawn = fdm.sample(scenes[0], "move the red circle left", 2)
    assert np.asarray(drawn[0].image).shape == (64, 64, 3)
    assert len(idm.score(scenes[0], [c.image for c in drawn], "move the red circle left")) == 2
    assert isinstance(idm.describe(scenes[0], scenes[1]), str)
    merged = load_fdm(tmp_path / "plain")
    assert merged.backbone.family == "liquid"
    assert merged.sample(scenes[0], "move the red circle left", 1)[0].logprob == pytest.approx(
        drawn[0].logprob, abs=1e-3
    )


def test_stages_go_on_and_keep_the_family(liquid: Path, tmp_path: Path) -> None:
    make_base(arguments(tmp_path / "more", base=str(liquid), steps=2))
    assert load_base(tmp_path / "more").family == "liquid"
    with pytest.raises(RewindError, match="is of the family liquid, which it keeps"):
        make_base(arguments(tmp_path / "other", base=str(liquid), family="chameleon"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokenizer_steps": 4}, "taken as it is: --tokenizer_steps 0 --merge_codes 0"),
        ({"merge_codes": 0.5}, "taken as it is: --tokenizer_steps 0 --merge_codes 0"),
        ({"world": None, "frames": [ROOT], "image_size": 96}, "sees 64 pixels, not 96"),
        ({"tokenizer_from": Path("none")}, "and no base either"),
    ],
)
def test_a_base_whose_tokenizer_cannot_be_taken(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence):
        make_base(arguments(tmp_path / "out", **{**SHIPPED_VQ, **changes}))
    assert not (tmp_path / "out").exists()
