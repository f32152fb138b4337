"""A run folder says which role it was trained for, and is not opened as the other one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny
from peft import LoraConfig
from PIL import Image
from script_runs import start

from rl import load_fdm, load_idm
from rl.errors import RewindError
from rl.models.export import save_merged
from rl.models.known import LINEAR_LAYERS
from rl.models.run_role import role_of
from rl.models.saving import save_base
from trainers.common.adapters import add_adapter, save_adapter


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and the adapters `fdm` and `idm` on it, as our trainers leave them."""
    folder = tmp_path_factory.mktemp("runs")
    vlm = make_tiny()
    vlm.name = str(folder / "base")
    save_base(vlm, folder / "base", {"pretraining": {}})
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS))
    for role in ("fdm", "idm"):
        save_adapter(vlm, folder / role, role=role)  # type: ignore[arg-type]
    return folder


def older(folder: Path, runs: Path, about: dict[str, Any]) -> Path:
    """A run folder from before adapters had a card, with this `run.json`."""
    shutil.copytree(runs / "fdm", folder)
    (folder / "adapter" / "rewind.json").unlink()
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def test_a_run_is_opened_in_its_own_role_only(runs: Path, tmp_path: Path) -> None:
    assert load_fdm(runs / "fdm").adapter == "default"
    assert load_idm(runs / "idm").adapter == "idm"
    shutil.copytree(runs / "idm" / "adapter", tmp_path / "copy")  # an adapter that was taken out of its run
    for wrong in (runs / "idm", runs / "idm" / "adapter", tmp_path / "copy"):
        with pytest.raises(RewindError, match=rf"{wrong} was trained as an inverse model .* asked for as a forward"):
            load_fdm(wrong)
    with pytest.raises(RewindError, match="was trained as a forward model"):
        load_idm(runs / "fdm", backbone=load_fdm(runs / "fdm").backbone)


@pytest.mark.parametrize(
    ("about", "role"),
    [
        ({"script": "train_idm.py", "config": {}}, "idm"),
        *(({"script": f"train_{name}.py", "config": {}}, "fdm") for name in ("fdm", "grpo", "dpo", "best_of_n")),
        ({"script": "train_fdm.py", "config": {"with_idm": True}}, "fdm"),
        ({"script": "train_grpo.py", "config": {"role": "idm"}}, "idm"),
        ({"script": "demo.py", "stage": "judge_idm"}, "idm"),
        ({"script": "demo.py", "stage": "bootstrapped"}, "fdm"),
        ({"script": "somebody_elses.py"}, None),
        ({}, None),
    ],
)
def test_the_role_of_an_older_run_is_that_of_its_script(
    about: dict[str, Any], role: str | None, runs: Path, tmp_path: Path
) -> None:
    run = older(tmp_path / "run", runs, about)
    shutil.copytree(run / "adapter", run / "checkpoint-5")
    assert role_of(run) == role_of(run / "adapter") == role_of(run / "checkpoint-5") == role


def test_what_says_nothing_is_opened_as_either(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fdm" / "adapter", tmp_path / "bare")
    (tmp_path / "bare" / "rewind.json").unlink()
    assert role_of(tmp_path / "bare") is role_of(runs / "base") is role_of("tabletop-chameleon") is None
    base = runs / "base"
    load_idm(tmp_path / "bare", load_fdm(tmp_path / "bare", base=base).backbone, base=base)
    about = {"script": "train_fdm.py", "config": {"with_idm": True}}
    assert role_of(older(tmp_path / "idm", runs, about)) == "idm"  # the second folder of --with_idm, of an older run
    assert role_of("tabletop-chameleon-judge") == "idm"


def test_an_export_keeps_the_role(runs: Path, tmp_path: Path) -> None:
    done = start("scripts/export.py", "--run", runs / "idm", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "opens with load_idm and transformers" in done.stdout
    assert load_idm(tmp_path / "out").adapter is None
    with pytest.raises(RewindError, match="was trained as an inverse model"):
        load_fdm(tmp_path / "out")
    model = load_fdm(runs / "fdm")
    save_merged(model.backbone, model.adapter, tmp_path / "plain", {})
    assert role_of(tmp_path / "plain") is None


def test_scripts_refuse_swapped_runs(runs: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "picture.png")
    given = ["--source", tmp_path / "picture.png", "--action", "move it", "--output", tmp_path / "out"]
    done = start("scripts/rerank.py", "--fdm", runs / "idm", "--idm", runs / "fdm", *given)
    assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{runs / 'idm'} was trained as an inverse model (--idm, load_idm)" in said
