"""Where a run's base is: runs are opened from elsewhere, moved, or told their base by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig

from rl import load_fdm, load_idm
from rl.errors import RewindError
from rl.models.bases import adapter_folder, base_of_adapter, lasting_name, same_base
from rl.models.known import SHIPPED
from rl.models.opening import load_base, shares_base
from rl.models.saving import save_base
from rl.models.unified import UnifiedVLM
from trainers.common.adapters import add_adapter, save_adapter
from trainers.plan.shapes import adapter_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base."""
    home = tmp_path / "home"
    save_base(make_tiny(), home / "runs" / "base", {})
    monkeypatch.chdir(home)
    return home


def train(base: str, run: Path, name: str = "default") -> UnifiedVLM:
    """A run on a base that is given as a user types it."""
    vlm = load_base(base)
    torch.manual_seed(1)
    add_adapter(vlm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), name)
    save_adapter(vlm, run, name)
    return vlm


def named(run: Path) -> str:
    return str(json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"])


def test_a_run_on_a_relative_base_opens_from_another_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("runs/base", Path("runs/beside"))
    train("runs/base", Path("runs/deep/er/run"), "idm")
    assert named(home / "runs/beside") == "../../base"
    assert named(home / "runs/deep/er/run") == str(home / "runs/base")
    monkeypatch.chdir(tmp_path)
    fdm = load_fdm("home/runs/beside")
    assert shares_base("home/runs/deep/er/run", fdm.backbone)
    assert load_idm("home/runs/deep/er/run", fdm.backbone).backbone is fdm.backbone
    assert adapter_of("home/runs/beside") == (str(home / "runs/base"), 2, ["q_proj"])
    shutil.move(home / "runs", tmp_path / "elsewhere")  # what lies beside its base moves with it
    assert load_fdm("elsewhere/beside").backbone.name == str(tmp_path / "elsewhere" / "base")


def test_what_a_loaded_adapter_is_saved_with(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPO goes on from another run's adapter, and checkpoints are written by peft from what is in memory."""
    train("runs/base", Path("runs/sft"))
    vlm = load_fdm("runs/sft").backbone
    vlm.model.save_pretrained("runs/grpo/checkpoint-1")  # type: ignore[operator]
    save_adapter(vlm, Path("runs/a/grpo"))
    monkeypatch.chdir(tmp_path)
    for run in ("home/runs/grpo/checkpoint-1", "home/runs/a/grpo"):
        assert same_base(load_fdm(run).backbone.name, "home/runs/base")


def test_a_moved_base_is_given_by_hand(home: Path) -> None:
    train("runs/base", Path("runs/deep/er/run"))
    Path("runs/base").rename("runs/moved")
    with pytest.raises(
        RewindError, match=r"stands on the base '.*base', which is not there any more: give .* as base="
    ):
        load_fdm("runs/deep/er/run")
    fdm = load_fdm("runs/deep/er/run", base="runs/moved")
    assert fdm.backbone.name == "runs/moved"
    assert load_idm("runs/deep/er/run", fdm.backbone, base=Path("runs/moved")).adapter == "idm"
    assert load_idm("runs/deep/er/run", fdm.backbone, "again").adapter == "again"  # the same weights, by fingerprint
    Path("runs/deep/er/run/adapter/rewind.json").unlink()  # older adapters have none
    with pytest.raises(RewindError, match=r"belongs to .*base, not to runs/moved"):
        load_idm("runs/deep/er/run", fdm.backbone, "third")
    with pytest.raises(RewindError, match="there is no folder runs/none here"):
        load_fdm("runs/deep/er/run", base="runs/none")
    with pytest.raises(RewindError, match=r"'runs/moved' holds no adapter.*: leave out base="):
        load_fdm("runs/moved", base="runs/moved")


def test_a_base_named_from_the_working_folder_is_found_as_before(home: Path) -> None:
    vlm = train("runs/base", Path("runs/run"))
    file = home / "runs/run/adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "runs/base"}))
    folder = adapter_folder("runs/run")
    assert folder is not None
    assert base_of_adapter(folder) == "runs/base"
    assert shares_base("runs/run", vlm)
    assert shares_base(home / "runs" / "base", vlm)


def test_a_shipped_name_stays(home: Path) -> None:
    assert lasting_name("tabletop-chameleon", home / "runs/run/adapter") == "tabletop-chameleon"
    assert same_base("tabletop-chameleon", SHIPPED["tabletop-chameleon"])
    assert lasting_name("tiny") == "tiny"  # no folder: a name that only its maker knows


def test_links_lead_where_they_lead(home: Path, tmp_path: Path) -> None:
    """A run folder that is a link to another disk: '..' from there is that disk's."""
    (tmp_path / "disk").mkdir()
    (home / "runs/run").symlink_to(tmp_path / "disk")
    train("runs/base", Path("runs/run"))
    assert named(tmp_path / "disk") == str(home / "runs/base")
    assert load_fdm("runs/run").backbone.name == str(home / "runs/base")
