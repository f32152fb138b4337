"""Checkpoints are whole or not there, and damage is noticed."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from conftest import make_tiny
from peft import LoraConfig
from safetensors import SafetensorError
from test_sft import triplets
from torch.utils.data import DataLoader, RandomSampler
from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.running.files import full_disk
from trainers.common.adapters import add_adapter, save_adapter
from trainers.common.checkpoints import (
    _checkpoint_to_go_on_from,
    damage,
    fit,
    last_checkpoint,
    seal,
)
from trainers.common.epochs import OrderOfEpoch, TellsTheEpoch
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer


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
    assert "checkpoint-11 cannot be used (it was not finished)" in caplog.text
    (second / "weights").write_bytes(bytes(range(99)) + b"x")
    assert damage(second) == "weights is missing or changed"
    assert last_checkpoint(tmp_path) == str(first)
    (first / "weights").unlink()
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_is_in_the_order_of_its_epoch(processes: int, ours: bool) -> None:
    """The second epoch from its second batch on, also where the batches of several processes are skipped."""
    rows = list(range(12))

    def loader() -> Any:
        sampler = OrderOfEpoch(rows, 1, 2, seed=0) if ours else RandomSampler(rows, generator=torch.Generator())
        plain: Any = DataLoader(rows, batch_size=2, sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
        return prepare_data_loader(
            plain, num_processes=processes, process_index=0, put_on_device=False, use_seedable_sampler=not ours
        )

    torch.manual_seed(0)
    whole, state = loader(), TrainerState(epoch=1 + processes / 6)
    _, second = list(whole), list(whole)
    resumed = loader()
    cut = skip_first_batches(resumed, 1)
    arguments: Any = None
    TellsTheEpoch().on_epoch_begin(arguments, state, TrainerControl(), train_dataloader=resumed)
    cut.set_epoch(1)  # as transformers does
    assert list(cut) == second[1:]
    assert len(second) == 6 // processes


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


def test_a_full_disk_keeps_the_earlier_adapter(tmp_path: Path) -> None:
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    folder = save_adapter(vlm, tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with torch.no_grad():
        next(p for p in vlm.model.parameters() if p.requires_grad).add_(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises((OSError, SafetensorError)) as raised:
            save_adapter(vlm, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert full_disk(raised.value) == "File too large"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    save_adapter(vlm, tmp_path)
    assert (folder / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]


def logged(trainer: RoleSFTTrainer) -> list[int]:
    return [row["step"] for row in trainer.state.log_history if "grad_norm" in row]


def test_more_steps_and_other_logging_are_honoured_on_resumption(tmp_path: Path) -> None:
    first = {"max_steps": 2, "save_steps": 2, "logging_steps": 1, "lr_scheduler_type": "constant"}
    fit(sft(tmp_path / "run", **first), tmp_path / "run", resume=False)
    more = sft(tmp_path / "run", **{**first, "max_steps": 6, "save_steps": 3, "logging_steps": 2})
    fit(more, tmp_path / "run", resume=True)
    assert more.state.global_step == 6
    assert logged(more) == [1, 2, 4, 6]
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 3, 6)]
    whole = sft(tmp_path / "whole", **{**first, "max_steps": 6, "save_steps": 3})
    fit(whole, tmp_path / "whole", resume=False)
    for (name, ours), theirs in zip(more.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_run_of_epochs_that_had_ended_trains_no_further(tmp_path: Path) -> None:
    settings = {
        "num_train_epochs": 1,
        "save_steps": 3,
        "per_device_train_batch_size": 3,
        "lr_scheduler_type": "constant",
    }
    fit(sft(tmp_path, **settings), tmp_path, resume=False)  # 8 rows in 3 steps
    late = sft(tmp_path, **settings)
    late.train = None  # type: ignore[method-assign, assignment]
    fit(late, tmp_path, resume=True)
    assert late.state.global_step == 3
    longer = sft(tmp_path, **{**settings, "num_train_epochs": 2})
    fit(longer, tmp_path, resume=True)
    assert longer.state.global_step == 6


def test_out_of_memory_in_a_loss_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended it, where, and what needs less, by the names of the script that trains; other errors stay."""
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore")
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
    why, step = "Tried to allocate 2.00 GiB. GPU 0 has", "step 1: use "
    batch = "(2 now, with --gradient_accumulation_steps as many times larger for the same steps)"
    plan = " or more GPUs; scripts/plan.py says what fits"
    again = " or --activation_checkpointing true"
    kept: dict[str, Any] = {"gradient_checkpointing": True}
    for raised, settings, own, said in (
        (gpu, {}, "", f"{why}), {step}a smaller --per_device_train_batch_size {batch}{again}{plan}"),
        (gpu, kept, "", f"{why}), {step}a smaller --per_device_train_batch_size {batch}{plan}"),
        (cpu, {"per_device_train_batch_size": 1}, "", f"memory), {step}{again[4:]}{plan}"),
        (cpu, {}, "--batch_size", f"memory), {step}a smaller --batch_size (2 now)"),
        (RuntimeError("shapes"), {}, "", "shapes"),
    ):
        run = sft(tmp_path, **settings)

        def fails(*_: Any, error: RuntimeError = raised, **__: Any) -> None:
            raise error

        monkeypatch.setattr(run, "compute_loss", fails)
        with pytest.raises(RuntimeError if said == "shapes" else RewindError) as caught:
            fit(run, tmp_path, False, own)
        assert str(caught.value).endswith(said)


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    fit(sft(tmp_path, max_steps=2, save_steps=1, save_only_model=True), tmp_path, resume=False)
    fit(sft(tmp_path, max_steps=2, save_steps=1, save_only_model=True), tmp_path, resume=True)  # it had ended
    with pytest.raises(RewindError, match=r"checkpoint-2 holds weights alone \(--save_only_model true\).*--overwrite"):
        fit(sft(tmp_path, max_steps=3, save_steps=1), tmp_path, resume=True)


def test_all_checkpoints_damaged_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint-3").mkdir()  # killed while it wrote its first
    arguments: Any = TrainingArguments(output_dir=str(tmp_path), max_steps=10)
    assert _checkpoint_to_go_on_from(arguments, tmp_path) is None
    assert "holds no finished checkpoint: the run begins with its first step" in caplog.text
    for step in (1, 2):
        (sealed(tmp_path, step) / "weights").write_bytes(b"torn")
    with pytest.raises(
        RewindError, match=r"all checkpoints of .* are damaged \(checkpoint-2, checkpoint-1\).*--overwrite"
    ):
        _checkpoint_to_go_on_from(arguments, tmp_path)


def test_a_damaged_adapter_is_said(tmp_path: Path) -> None:
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    folder = save_adapter(vlm, tmp_path)
    weights, digests = folder / "adapter_model.safetensors", folder / "digests.json"
    make_tiny().attach_adapter(folder, "default")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit, which safetensors does not see
    with pytest.raises(
        RewindError, match=r"is damaged \(adapter_model.safetensors is missing or changed since it was saved"
    ):
        make_tiny().attach_adapter(folder, "default")
    digests.unlink()  # as in older runs
    make_tiny().attach_adapter(folder, "default")
    save_adapter(vlm, tmp_path)
    assert digests.is_file()
    make_tiny().attach_adapter(folder, "default")
