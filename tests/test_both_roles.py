"""Both roles at once: each adapter ends as a run of its role alone leaves it, to the bit.

TRL 1.16 and transformers 5.23: `training_step` once a role, the divisor of each, a norm to clip for each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from script_runs import succeed
from test_grpo_resume import StopAfter
from test_sft import triplets
from transformers import set_seed

from rl import load_fdm, load_idm
from rl.data.importance import Importance
from rl.data.triplet_files import read_triplets
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import Role
from trainers.common.adapters import add_adapter
from trainers.common.checkpoints import fit
from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.both_roles import ADAPTERS, BothRolesSFTTrainer, both_rows
from trainers.sft.recipe import train_role
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 5,  # more than an epoch of 12 rows
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "z_loss": 0.01,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": True,  # a layer that is run again must find the adapter that it was run with
}


def run_of(folder: Path, roles: list[Role], **settings: Any) -> RoleSFTTrainer:
    vlm = make_tiny()
    for name in [ADAPTERS[role] for role in roles] if len(roles) > 1 else ["default"]:
        set_seed(0)
        add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
    config = RoleConfig(output_dir=str(folder), **{**SETTINGS, **settings})
    rows = {role: role_rows(vlm, role, triplets(12), Importance() if role == "fdm" else None) for role in roles}
    if len(roles) == 1:
        return RoleSFTTrainer(vlm, roles[0], config, rows[roles[0]], use_weights=roles[0] == "fdm")
    return BothRolesSFTTrainer(vlm, config, both_rows(rows["fdm"], rows["idm"]), use_weights=True)


def adapter(model: Any, name: str) -> dict[str, torch.Tensor]:
    found = {
        key.replace(f".{name}.", "."): p.detach().clone() for key, p in model.named_parameters() if f".{name}." in key
    }
    assert found
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize("clip", [1e-3, 0.0])
def test_each_role_ends_as_it_would_alone(clip: float, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    both = run_of(tmp_path / "both", ["fdm", "idm"], max_grad_norm=clip)
    start = {role: adapter(both.model, name) for role, name in ADAPTERS.items()}
    both.train()
    logs = [row for row in both.state.log_history if "loss" in row]
    for role, name in ADAPTERS.items():
        alone = run_of(tmp_path / role, [role], max_grad_norm=clip)
        assert same(start[role], adapter(alone.model, "default"))
        alone.train()
        assert same(adapter(both.model, name), adapter(alone.model, "default")), role
        assert not same(adapter(both.model, name), start[role])
        expected = [row for row in alone.state.log_history if "loss" in row]
        assert [row[f"loss_{role}"] for row in logs] == pytest.approx([row["loss"] for row in expected], abs=1e-4)
        assert [row[f"z_loss_{role}"] for row in logs] == pytest.approx([row["z_loss"] for row in expected])
    assert logs[0]["loss"] == pytest.approx(logs[0]["loss_fdm"] + logs[0]["loss_idm"], abs=1e-4)
    assert both.model.active_adapter == "default"


def test_a_pass_of_one_role_leaves_the_other_adapter_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the comparison above: with the inverse role's pass left out, only the forward role learns."""
    both = run_of(tmp_path, ["fdm", "idm"])
    before = {name: adapter(both.model, name) for name in ADAPTERS.values()}
    step = RoleSFTTrainer.training_step

    def only_fdm(self: Any, model: Any, inputs: Any, total: Any = None) -> torch.Tensor:
        return step(self, model, inputs, total) if self.role == "fdm" else torch.zeros(())

    monkeypatch.setattr(RoleSFTTrainer, "training_step", only_fdm)
    both.args.max_grad_norm = 0.0
    both.train()
    assert same(before["idm"], adapter(both.model, "idm"))
    assert not same(before["default"], adapter(both.model, "default"))


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = run_of(tmp_path / "whole", ["fdm", "idm"], **settings)
    whole.train()
    cut = run_of(tmp_path / "cut", ["fdm", "idm"], **settings)
    cut.add_callback(StopAfter(3))
    cut.train()
    again = run_of(tmp_path / "cut", ["fdm", "idm"], **settings)
    fit(again, tmp_path / "cut", resume=True)
    late = run_of(tmp_path / "cut", ["fdm", "idm"], **settings)
    fit(late, tmp_path / "cut", resume=True)  # killed after its last step
    for name in ADAPTERS.values():
        assert same(adapter(whole.model, name), adapter(again.model, name)), name
        assert same(adapter(whole.model, name), adapter(late.model, name)), name


def test_the_script_leaves_two_run_folders(tmp_path: Path) -> None:
    world, output = tmp_path / "world", tmp_path / "both"
    succeed("scripts/make_world.py", "--num_triplets", 8, "--num_videos", 0, "--output", world)
    flags = ["--config", "configs/fdm_tabletop.yaml", "--triplets", world / "triplets.json", "--output_dir", output]
    flags += ["--token_weights", "true", "--with_idm", "true", "--max_steps", 2, "--per_device_train_batch_size", 4]
    succeed("scripts/train_fdm.py", *flags, "--lora_r", 4, "--logging_steps", 1)
    fdm = load_fdm(output)
    idm = load_idm(output / "idm", backbone=fdm.backbone)
    (triplet, *_) = read_triplets(world / "triplets.json")
    candidates = fdm.sample(triplet.source, triplet.action, num_samples=2)
    assert len(idm.score(triplet.source, candidates, triplet.action)) == 2
    trained = {name: adapter(fdm.backbone.model, name) for name in ADAPTERS.values()}
    assert all(any(bool(w.any()) for key, w in own.items() if "lora_B" in key) for own in trained.values())
    assert json.loads((output / "idm" / "run.json").read_text())["config"]["with_idm"] is True
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss_fdm" in row and "loss_idm" in row] == [1, 2]


def test_what_cannot_be_trained_at_once_is_refused(tiny: ChameleonVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewindError, match="got 3 and 2 rows"):
        both_rows(role_rows(tiny, "fdm", triplets(3)), role_rows(tiny, "idm", triplets(2)))
    config = RoleConfig(output_dir="never")
    synthetic = FDMArguments(triplets=["a.json"], synthetic=["b.json"], with_idm=True)
    with pytest.raises(RewindError, match="leave one of them out"):
        train_role("fdm", synthetic, config, LoraModelConfig())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RewindError, match="does not run under DeepSpeed"):
        train_role("fdm", FDMArguments(triplets=["a.json"], with_idm=True), config, LoraModelConfig())
    assert not Path("never").exists()
