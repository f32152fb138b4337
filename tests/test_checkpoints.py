"""Checkpoints are whole or not there, and damage is noticed."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from conftest import make_tiny
from peft import LoraConfig
from test_sft import triplets

from rl.errors import RewindError
from trainers.arguments import RoleConfig
from trainers.checkpoints import damage, last_checkpoint, seal
from trainers.sft import LINEAR_LAYERS, RoleSFTTrainer, add_adapter, role_rows


def sealed(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir()
    (made / "weights").write_bytes(bytes(range(100)))
    seal(made)
    return made


def test_the_last_whole_one_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert last_checkpoint(tmp_path) is None
    first, second = sealed(tmp_path, 9), sealed(tmp_path, 10)
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path) == str(second)
    assert "checkpoint-11 cannot be used (it was not finished): the one before is taken" in caplog.text
    (second / "weights").write_bytes(bytes(range(99)) + b"x")
    assert damage(second) == "weights is missing or changed"
    assert last_checkpoint(tmp_path) == str(first)
    (first / "weights").unlink()
    assert last_checkpoint(tmp_path) is None


def sft(folder: Path, **settings: object) -> RoleSFTTrainer:
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS))
    defaults = {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "report_to": "none"}
    config = RoleConfig(output_dir=str(folder), disable_tqdm=True, **{**defaults, **settings})  # type: ignore[arg-type]
    return RoleSFTTrainer(vlm, "fdm", config, role_rows(vlm, "fdm", triplets(8)))


def test_older_ones_go_when_the_new_one_is_sealed(tmp_path: Path) -> None:
    sft(tmp_path, max_steps=3, save_steps=1, save_total_limit=2).train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert all(damage(folder) is None for folder in tmp_path.glob("checkpoint-*"))


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    run = sft(tmp_path, max_steps=2, save_steps=1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.train()
    again = sft(tmp_path, max_steps=3, save_steps=3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a file that grows beyond it fails as on a full disk
    try:
        with pytest.raises(RewindError, match=r"checkpoint-3 could not be written .*checkpoint-2 is whole: --resume"):
            again.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not (tmp_path / "checkpoint-3").exists()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
