"""A model that is divided among devices draws and scores the same: `device_map` of transformers and accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_families import SIZE, VQ, opened, pictures, shelf
from test_fingerprints import run_on

from rl import RewindError, load_fdm, load_idm
from rl.models.settings import Settings
from rl.running.command_line import parse_with_config
from scripts.sample import parser
from trainers.common.arguments import parse
from trainers.sft.arguments import IDMArguments, RoleConfig

ACTION = "move the red circle left"


pytestmark = pytest.mark.usefixtures("one_thread")


def on_disk(name: str, layers: str) -> dict[str, str]:
    """The second layer, the norm and the encoder are read from the file whenever they are needed."""
    inner = {"emu3": "model.text_model"}.get(name, "model")
    here = {f"{inner}.embed_tokens": "cpu", f"{inner}.layers.0": "cpu", "lm_head": "cpu"}
    there = {f"{inner}.layers.1": layers, f"{inner}.norm": layers, f"{inner}.rotary_emb": "cpu"}
    return here | there | ({} if name == "liquid" else {"model.vqmodel": layers})


@pytest.mark.parametrize("place", ["auto", "cpu", {"": "cpu"}, "disk"])
@pytest.mark.parametrize("name", ["chameleon", "liquid"])
def test_a_divided_model_says_the_same(name: str, place: Any) -> None:
    vq = shelf()[VQ[name]] if name in VQ else None
    device_map = on_disk(name, "disk") if place == "disk" else place
    settings: dict[str, Any] = {"dtype": "float32", "image_size": SIZE.get(name), "device_map": device_map}
    fdm, whole = load_fdm(shelf()[name], vq=vq, **settings), load_fdm(shelf()[name], vq=vq, dtype="float32")
    if place == "disk":
        weights = dict(fdm.backbone.model.named_parameters())
        assert [n for n, p in weights.items() if p.is_meta]
        assert all("layers.1." in n or n.endswith("norm.weight") for n, p in weights.items() if p.is_meta)
    source, target = pictures(opened(name), 2)
    drawn, again = (model.sample(source, ACTION, 3, seed=2, guidance=2.0) for model in (whole, fdm))
    assert [c.ids.tolist() for c in again] == [c.ids.tolist() for c in drawn]
    close = 1e-5 if place == "disk" else 0.0  # on several devices no prompt is shared, which rounds in another order
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_allclose(other.logprobs, one.logprobs, rtol=0, atol=close)
    assert (np.asarray(again[0].image) == np.asarray(drawn[0].image)).all()
    idms = [load_idm(shelf()[name], model.backbone) for model in (whole, fdm)]
    scores = [idm.score(source, [target, 255 - source], ACTION) for idm in idms]
    np.testing.assert_allclose(*scores, rtol=0, atol=close)
    assert len({idm.describe(source, target, max_tokens=6) for idm in idms}) == 1


def test_an_adapter_on_a_divided_model(tmp_path: Path) -> None:
    run = run_on(shelf()["chameleon"], tmp_path / "run")
    divided, whole = load_fdm(run, device_map="auto"), load_fdm(run)
    source = pictures(opened("chameleon"), 1)[0]
    a, b = (model.sample(source, ACTION, 2, seed=1) for model in (whole, divided))
    assert [c.logprobs.tolist() for c in a] == [c.logprobs.tolist() for c in b]
    with pytest.raises(RewindError, match="cannot stand on layers that are read anew at every step"):
        load_fdm(run, device_map=on_disk("chameleon", "disk"))


def test_what_cannot_be_divided_so() -> None:
    with pytest.raises(RewindError, match="leave one of them out"):
        Settings(device="cpu", device_map="auto")
    with pytest.raises(RewindError, match="'fast' is neither a device nor one of auto, balanced"):
        Settings(device_map="fast")
    with pytest.raises(RewindError, match="'tape' is no device"):
        Settings(device_map={"": "tape"})
    assert Settings(device_map={"": torch.device("cpu")}).changes_weights
    wrong = on_disk("liquid", "cpu") | {"lm_head": "disk", "model.embed_tokens": "disk"}
    with pytest.raises(RewindError, match="is read as a matrix: give it a device in device_map"):
        load_fdm(shelf()["liquid"], vq=shelf()["vqgan"], device_map=wrong)


def test_the_flag_is_a_word_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["sample.py", "--fdm", "x", "--output", "y", "--device_map"]
    for text, value in (("auto", "auto"), ('{"": "cpu"}', {"": "cpu"})):
        monkeypatch.setattr("sys.argv", [*given, text])
        assert parse_with_config(parser()).device_map == value
    monkeypatch.setattr("sys.argv", [*given, '{"": '])
    with pytest.raises((RewindError, SystemExit)):
        parse_with_config(parser())


@pytest.mark.parametrize("flags", [["--device_map", "auto"], ["--device=cuda"], "device_map: auto"])
def test_in_training_the_launcher_places_the_weights(flags: Any, tmp_path: Path) -> None:
    if isinstance(flags, str):
        (tmp_path / "config.yaml").write_text(flags)
        flags = ["--config", str(tmp_path / "config.yaml")]
    with pytest.raises(RewindError, match=r"the launcher places the weights .*: leave --device(_map)? out"):
        parse([IDMArguments, RoleConfig], flags)


def test_a_map_that_names_no_module_is_refused() -> None:
    with pytest.raises(RewindError, match="device_map names 'nope', which is no part of the model"):
        load_fdm(shelf()["chameleon"], device_map={"": "cpu", "nope": "cpu"})
