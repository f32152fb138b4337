"""A base is known by its weights: adapters, stores and resumed runs find it again, and refuse another."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from opened_families import VQ, opened, shelf
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from rl import RewindError, load_fdm, load_idm
from rl.data.candidates.store import CandidateStore
from rl.models.export import save_merged
from rl.models.fingerprint import fingerprint
from rl.models.opening import load_base, load_idm_beside, shares_base
from rl.models.saving import save_base
from rl.models.settings import Settings
from rl.triplets import Candidate, Scored, Triplet
from trainers.common.adapters import add_adapter, save_adapter
from trainers.common.runs import begin_run
from trainers.sft.arguments import IDMArguments, RoleConfig


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_base(make_tiny(), tmp_path / "base", {})
    return tmp_path / "base"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Of the same shape, so that an adapter fits it."""
    save_base(make_tiny(seed=1), tmp_path / "other", {})
    return tmp_path / "other"


def run_on(base: Path, run: Path, role: Any = "fdm", vq: Path | None = None, **settings: Any) -> Path:
    vlm = load_base(base, Settings(**settings), vq)
    torch.manual_seed(1)
    add_adapter(vlm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    save_adapter(vlm, run, role=role)
    return run


@pytest.mark.parametrize("family", ["chameleon", "liquid"])  # the others: tests/test_families.py
def test_a_published_checkpoint_and_its_conversions_are_one_base(family: str, tmp_path: Path) -> None:
    """Shards, names, precision and where the VQ tokenizer lies differ; the weights are the same."""
    published = fingerprint(shelf()[family])
    assert published is not None
    vlm = opened(family)
    assert vlm.fingerprint == published
    embedding = vlm.model.get_input_embeddings().weight
    assert (published.vocabulary, published.hidden_size, published.layers) == (*embedding.shape, 2)
    for dtype in ("float32", "bfloat16"):
        half = opened(family, dtype)
        save_base(half, tmp_path / dtype, {}, max_shard_size="3MB" if dtype == "float32" else "50GB")
        assert fingerprint(tmp_path / dtype) == published
    assert len(list((tmp_path / "float32").glob("model-*.safetensors"))) > 1 or family == "chameleon"


def test_other_weights_are_another_base(base: Path, other: Path, tmp_path: Path) -> None:
    found = {fingerprint(base), fingerprint(other), fingerprint(shelf()["chameleon"].parent)}
    assert len(found) == 3
    assert None in found
    run = run_on(base, tmp_path / "run")
    fdm = load_fdm(run)
    save_merged(fdm.backbone, fdm.adapter, tmp_path / "merged", {})
    weights = load_file(base / "model.safetensors")
    last = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[last][0, 0] += 1
    shutil.copytree(base, tmp_path / "changed")
    save_file(weights, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    assert fingerprint(tmp_path / "changed") not in (None, fingerprint(base))


def test_an_adapter_refuses_another_base_of_its_shape(base: Path, other: Path, tmp_path: Path) -> None:
    run = run_on(base, tmp_path / "run")
    assert json.loads((run / "adapter/rewind.json").read_text())["base"]["hidden_size"] == 32
    both = r"was trained on another base than .*other is now: on .*base \(hidden size 32, 2 layers, .*\), and this one"
    with pytest.raises(RewindError, match=both):
        load_fdm(run, base=other)
    with pytest.raises(RewindError, match=r"belongs to .*base \(.*\), not to .*other \(hidden size 32"):
        load_idm(run_on(base, tmp_path / "idm", "idm"), load_base(other))
    shutil.rmtree(base)
    shutil.move(other, base)  # under the very name that the adapter gives
    with pytest.raises(RewindError, match=r"was trained on another base than .*base is now"):
        load_fdm(run)
    (run / "adapter/rewind.json").write_text('{"role": "fdm"}')  # older adapters do not know
    assert load_fdm(run).adapter == "default"


def test_an_adapter_opens_on_a_copy_in_half_precision(base: Path, tmp_path: Path) -> None:
    run = run_on(base, tmp_path / "run", dtype="bfloat16")
    save_base(load_base(base, Settings(dtype="bfloat16")), tmp_path / "half", {})
    shutil.move(base, tmp_path / "moved")
    for place in (tmp_path / "half", tmp_path / "moved"):
        fdm = load_fdm(run, base=place)
        assert fdm.backbone.name == str(place)
        assert shares_base(run, fdm.backbone)


def test_an_inverse_model_shares_a_backbone_that_has_been_moved(base: Path, other: Path, tmp_path: Path) -> None:
    fdm_run, idm_run = run_on(base, tmp_path / "fdm"), run_on(base, tmp_path / "idm", "idm")
    apart = run_on(other, tmp_path / "apart", "idm")
    shutil.copytree(base, tmp_path / "copy")
    fdm = load_fdm(fdm_run, base=tmp_path / "copy")
    for given in ({}, {"base": tmp_path / "copy"}):
        assert load_idm_beside(idm_run, fdm.backbone, **given).backbone is fdm.backbone
        fdm = load_fdm(fdm_run, base=tmp_path / "copy")
    idm = load_idm_beside(apart, fdm.backbone, base=tmp_path / "copy")  # its own base, which is another, is there
    assert idm.backbone.name == str(other)
    plain = load_idm_beside(other, fdm.backbone, base=tmp_path / "copy")
    assert (plain.backbone.name, plain.adapter) == (str(other), None)


def test_an_inverse_model_is_opened_again_with_the_base_and_the_vq_that_were_given(tmp_path: Path, base: Path) -> None:
    """Only where it does not open without them."""
    run = run_on(base, tmp_path / "idm", "idm")
    shutil.move(base, tmp_path / "moved")
    idm = load_idm_beside(run, None, base=tmp_path / "moved")
    assert idm.backbone.name == str(tmp_path / "moved")
    fdm = opened("chameleon")
    with pytest.raises(RewindError, match="--vq FOLDER"):
        load_idm_beside(shelf()["liquid"], fdm)
    idm = load_idm_beside(shelf()["liquid"], fdm, vq=shelf()[VQ["liquid"]])
    assert idm.backbone.family == "liquid"


def test_a_run_keeps_the_size_of_its_pictures(tmp_path: Path) -> None:
    base, vq = shelf()["lumina"], shelf()[VQ["lumina"]]
    run = run_on(base, tmp_path / "run", vq=vq, image_size=96)
    fdm = load_fdm(run, vq=vq)
    assert fdm.backbone.image_size == 96
    assert load_idm(run_on(base, tmp_path / "idm", "idm", vq=vq, image_size=96), fdm.backbone).adapter == "idm"
    other = run_on(base, tmp_path / "other", "idm", vq=vq, image_size=32)
    with pytest.raises(RewindError, match=r"with pictures of 32 pixels, not to .* with 96"):
        load_idm(other, fdm.backbone)
    assert load_idm_beside(other, fdm.backbone, vq=vq).backbone.image_size == 32
    told = json.loads((run_on(shelf()["chameleon"], tmp_path / "x") / "adapter/rewind.json").read_text())
    assert "image_size" not in told


def test_a_run_keeps_the_image_tokenizer_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that open the run need no --vq; another base, one of its own name elsewhere, is opened as it is."""
    base, vq = shelf()["liquid"], shelf()[VQ["liquid"]]
    monkeypatch.chdir(vq.parent)
    run = run_on(base, tmp_path / "run", vq=Path(vq.name))
    monkeypatch.chdir(tmp_path)
    assert load_fdm(run).backbone.family == "liquid"
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(RewindError, match="--vq FOLDER"):
        load_fdm(run, base=tmp_path / "copy")
    assert load_fdm(run, base=tmp_path / "copy", vq=vq).backbone.asked_vq == str(vq.absolute())
    card = tmp_path / "run/adapter/rewind.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"vq": "/gone"}))
    with pytest.raises(RewindError, match="tokenizer in /gone, which is not there any more: say where it is"):
        load_fdm(run)
    assert load_fdm(run, vq=vq).backbone.family == "liquid"


def test_a_run_goes_on_with_a_base_that_has_moved(
    base: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def begin(base: Path, resume: bool) -> Path:
        arguments = IDMArguments(base=str(base), resume=resume)
        config = RoleConfig(output_dir=str(tmp_path / "run"))
        return begin_run("train_idm.py", arguments, config, [], vlm=load_base(base))

    output = begin(base, False)
    (output / "metrics.jsonl").write_text("{}\n")  # it has finished something
    shutil.move(base, tmp_path / "moved")
    with caplog.at_level(logging.WARNING):
        assert begin(tmp_path / "moved", True) == output
    assert "another base" not in caplog.text
    with pytest.raises(RewindError, match=r"begun with other values of base .*, base_fingerprint \(begun with"):
        begin(other, True)
    told = json.loads((output / "run.json").read_text())
    del told["config"]["base_fingerprint"]  # an older run goes by the name
    (output / "run.json").write_text(json.dumps(told))
    with pytest.raises(RewindError, match=r"begun with other values of base \(begun with [^)]*\): resume"):
        begin(tmp_path / "moved", True)


def test_stored_candidates_are_those_of_a_base_wherever_it_lies(base: Path, other: Path, tmp_path: Path) -> None:
    vlm = load_base(base)
    ids = vlm.layout.image_ids_V[:4].numpy()
    store = CandidateStore(tmp_path / "store")
    triplet = Triplet(np.zeros((32, 32, 3), np.uint8), "move the red circle left")
    store.append([(triplet, [Scored(Candidate(ids, np.zeros(4), vlm), {"a": 1.0}, 1.0)])], seed=0, step=0)
    shutil.move(base, tmp_path / "moved")
    ((_, group),) = store.groups(load_base(tmp_path / "moved"))
    assert group[0].candidate.ids.tolist() == ids.tolist()
    shutil.move(other, base)
    with pytest.raises(RewindError, match="whose tokens are not those of"):
        store.groups(load_base(base))
