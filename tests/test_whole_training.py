"""SFT of all weights of the language model (`--use_peft false`): the run holds a model of its own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from opened_families import copied, opened, pictures
from safetensors.torch import load_file
from test_sharding import LAUNCH, run
from test_sharding import config as sharding
from transformers import set_seed

from rl import RewindError, load_fdm, load_idm
from rl.data.triplet_files import write_triplets
from rl.models.fingerprint import fingerprint
from rl.models.opening import load_base
from rl.models.run_role import role_of
from rl.models.saving import save_base
from rl.models.settings import Settings
from rl.triplets import Triplet
from trainers.common.adapters import save_whole
from trainers.common.arguments import ImproveArguments, parse
from trainers.common.checkpoints import fit
from trainers.common.improvement import open_for_improvement
from trainers.plan.shapes import shape_of
from trainers.sft.arguments import FDMArguments, IDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ACTION = "move the red circle left"


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3}
    return {"output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 2, **quiet, **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 2, 32, 32, 3), dtype=np.uint8)
    return write_triplets([Triplet(a, ACTION, b, "move") for a, b in images], tmp_path / "data")


def test_a_run_of_all_weights_is_a_model_of_its_own(data: Path, tmp_path: Path) -> None:
    save_base(make_tiny(), tmp_path / "base", {})
    config, model = RoleConfig(**settings(tmp_path / "run", save_strategy="no")), LoraModelConfig(use_peft=False)
    run = train_role("fdm", FDMArguments(base=str(tmp_path / "base"), triplets=[str(data)]), config, model)
    assert not (run / "adapter").exists()
    assert role_of(run) == "fdm"
    base, fdm = load_fdm(tmp_path / "base"), load_fdm(run)
    assert (fdm.adapter, fdm.backbone.name) == (None, str(run))
    ours, theirs = (dict(model.backbone.model.named_parameters()) for model in (fdm, base))
    assert all(not torch.equal(weight, theirs[name]) for name, weight in ours.items())  # every one of them
    image = pictures(base.backbone, 1)[0]
    ids = base.backbone.encode([image])
    assert torch.equal(fdm.backbone.encode([image]), ids)
    assert (fdm.backbone.decode(ids) == base.backbone.decode(ids)).all()  # and none of the VQ tokenizer's
    assert fingerprint(run / "model") not in (None, fingerprint(tmp_path / "base"))
    assert shape_of(str(run)).parameters() == sum(weight.numel() for weight in ours.values())
    with pytest.raises(RewindError, match=r"was trained as a forward model .* swap them"):
        load_idm(run)
    # methods that learn from rewards go on with a fresh adapter on it, which names the run as its base
    arguments = ImproveArguments(fdm=str(run), triplets=[str(data)], rewards=["keep_unchanged"])
    set_seed(0)
    improved, _, _, _ = open_for_improvement(arguments, [])
    names = [name for name, weight in improved.backbone.model.named_parameters() if weight.requires_grad]
    assert improved.adapter == "default"
    assert names
    assert all(".default." in name for name in names)
    drawn = fdm.sample(image, ACTION, 2, seed=1)
    assert [c.ids.tolist() for c in improved.sample(image, ACTION, 2, seed=1)] == [c.ids.tolist() for c in drawn]
    arguments = ImproveArguments(fdm=str(tmp_path / "base"), triplets=[str(data)], rewards=["keep_unchanged"])
    with pytest.raises(RewindError, match="is a bare base: train it on labelled data first"):
        open_for_improvement(arguments, [])


@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
def test_a_run_of_all_weights_goes_on_exactly(family: str, tmp_path: Path) -> None:
    """Names that transformers changes as it saves, tied heads: a checkpoint that was left out would not be noticed."""
    vlm = opened(family)
    images = pictures(vlm)
    rows = role_rows(vlm, "idm", [Triplet(a, ACTION, b) for a, b in zip(images[:2], images[2:], strict=True)])
    steps = 2 if family == "emu3" else 3

    def trained(folder: Path, max_steps: int, resume: bool) -> tuple[Any, Any]:
        made = copied(vlm)
        set_seed(0)
        more = {"save_steps": 1, "save_total_limit": 2, "lr_scheduler_type": "constant", "max_steps": max_steps}
        trainer = RoleSFTTrainer(made, "idm", RoleConfig(**settings(folder, **more)), rows)
        fit(trainer, folder, resume)
        return made, trainer

    whole, _ = trained(tmp_path / "run", steps, False)
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / f"checkpoint-{steps}")
    for folder in ("cut", "run"):  # from the last but one step, and after the last
        again, trainer = trained(tmp_path / folder, steps, True)
        assert trainer.state.global_step == steps
        for (name, ours), theirs in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs), (folder, name)
        assert not torch.equal(next(iter(again.model.parameters())), next(iter(vlm.model.parameters())))
    if family == "liquid":  # its head is its embeddings
        save_whole(again, tmp_path / "saved", role="idm")
        idm = load_idm(tmp_path / "saved", dtype="float32")
        assert torch.equal(idm.backbone.head_weight(), again.head_weight())
        assert json.loads((tmp_path / "saved/model/rewind.json").read_text())["role"] == "idm"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lora_r", "8"], "trains all weights and no adapter: leave --lora_r out"),
        (["--use_dora", "true"], "trains all weights and no adapter: leave --use_dora out"),
        (["--load_in_4bit", "true"], "--load_in_4bit freezes them: leave one of them out"),
        (["--with_idm", "true"], "--with_idm puts both roles as adapters on one backbone"),
    ],
)
def test_what_needs_an_adapter_is_refused(flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "__post_init__", lambda _: None)  # bitsandbytes is asked for later
    given = ["--use_peft", "false", "--triplets", "x.json", "--output_dir", "x", "--report_to", "none"]
    with pytest.raises(RewindError, match=sentence):
        train_role("fdm", *parse((FDMArguments, RoleConfig, LoraModelConfig), [*given, *flags]))


def test_methods_by_rewards_train_adapters() -> None:
    with pytest.raises(RewindError, match=r"learn from rewards train an adapter.*: leave --use_peft out"):
        parse((ImproveArguments, RoleConfig), ["--use_peft", "false"])
    assert parse((IDMArguments, RoleConfig, LoraModelConfig), ["--use_peft", "false"])[2].use_peft is False


def test_a_base_that_was_cut_off_while_it_was_saved_does_not_open(tmp_path: Path) -> None:
    vlm = make_tiny()
    save_whole(vlm, tmp_path, role="fdm")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(RewindError, match="there is no base"):
        load_base(tmp_path)


@pytest.mark.slow
def test_the_script_on_two_processes_under_zero3(data: Path, tmp_path: Path) -> None:
    """Divided, evaluated, its best checkpoint kept, cut off and gone on with: to the bit, and as one process ends."""
    flags = ["scripts/train_fdm.py", "--base", "tabletop-chameleon", "--use_peft", "false", "--triplets", data]
    flags += ["--validation", data, "--eval_strategy", "steps", "--eval_steps", 2, "--save_steps", 2, "--max_steps", 4]
    flags += ["--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss", "--learning_rate", 1e-4]

    def train(name: str, processes: int, *more: str) -> Path:
        launch = [*LAUNCH, "--config_file", sharding(tmp_path, "zero3")] if processes == 2 else [sys.executable]
        batch = ["--per_device_train_batch_size", 4 // processes]
        done = run([*launch, *flags, *batch, "--output_dir", tmp_path / name, *more])
        assert done.returncode == 0, done.stdout[-4000:]
        return tmp_path / name

    one, two = train("one", 1), train("two", 2)
    shutil.copytree(two, tmp_path / "cut")
    for left in ("checkpoint-4", "model"):
        shutil.rmtree(tmp_path / "cut" / left)
    cut = train("cut", 2, "--resume", "true")
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, two, cut)]
    for name, weight in weights[1].items():
        assert torch.equal(weights[2][name], weight), name
        assert torch.allclose(weights[0][name], weight, atol=1e-5), name
    assert load_fdm(two).backbone.can_draw
