"""Every shipped config is read by its script's own arguments; those of published models are planned too."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from test_docs import KINDS

from rl.errors import RewindError
from rl.running.command_line import parse_with_config
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.common.arguments import parse
from trainers.plan.arithmetic import PHASES, memory
from trainers.plan.shapes import KNOWN

PUBLISHED = ("chameleon-7b", "liquid-7b", "emu3-8b")
ROLES = ("idm", "fdm", "grpo", "best_of_n", "dpo")
SCRIPT = {"judge": "idm", "real": "idm", "grpo_idm": "grpo"}
CONFIGS = [p for p in sorted((ROOT / "configs").glob("**/*.yaml")) if "accelerate" not in p.parts]
GPUS, GIB = 4, 2**30


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT / "configs"))


def test_each_published_model_has_all() -> None:
    assert {name_of(f) for f in CONFIGS if f.parent.name in PUBLISHED} == {
        f"{model}/{role}.yaml" for model in PUBLISHED for role in ROLES
    }


@pytest.mark.parametrize("file", [f for f in CONFIGS if not f.name.startswith("pretrain")], ids=name_of)
def test_a_config_is_read_whole(file: Path, tmp_path: Path) -> None:
    role = file.stem.removesuffix("_tabletop")
    script = f"scripts/train_{SCRIPT.get(role, role)}.py"
    read = parse(KINDS[script], ["--config", str(file), "--output_dir", str(tmp_path)])
    for key, value in yaml.safe_load(file.read_text()).items():
        assert [getattr(part, key) for part in read if hasattr(part, key)] == [value], key
    assert f"configs/{name_of(file)}" in file.read_text() or role in ("judge", "real")  # its own command


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_model_fits_four_gpus(model: str, role: str) -> None:
    """In 80 GiB with a fifth left, whole groups on every GPU, in the batches that the papers state."""
    file = ROOT / "configs" / model / f"{role}.yaml"
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "plan.py"))
    flags = ["--config", str(file), *(["--base", model] if role not in ("idm", "fdm") else [])]
    arguments = parse_with_config(script["parser"](), flags, others=[])
    algorithm, shape, job = script["job_of"](arguments)
    assert algorithm == {"idm": "sft", "fdm": "sft"}.get(role, role)
    assert shape == KNOWN[model]
    found = memory(shape, job, "zero2", GPUS)
    assert max(found["training"], found["rollout"]) < 0.8 * 80 * GIB
    values = yaml.safe_load(file.read_text())
    rows = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    assert rows * GPUS == {"idm": 64, "fdm": 96, "grpo": 64, "best_of_n": 96, "dpo": 32}[role]
    if role == "grpo":
        assert rows % values["num_generations"] == 0
    if role in ("best_of_n", "dpo"):
        assert job.rollout_rows == values["max_rows"]  # or it would draw 256 at once: 260 GiB


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_model_fits_one_gpu(model: str, role: str) -> None:
    """Of 80 GiB with a tenth left, with the config and at the script's defaults, a judge beside it: every phase."""
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "plan.py"))
    config = ["--config", str(ROOT / "configs" / model / f"{role}.yaml")]
    kind = {"idm": "sft", "fdm": "sft"}.get(role, role)
    for flags in (config, ["--algorithm", kind]):
        arguments = parse_with_config(script["parser"](), [*flags, "--base", model, "--judge_idm", model], others=[])
        _, shape, job = script["job_of"](arguments)
        found = memory(shape, job, "ddp", 1, 80 * GIB)
        told = {name: round(found[name] / GIB, 1) for name in PHASES}
        assert found["peak"] <= 0.9 * 80 * GIB, told


def test_no_candidate_at_once_is_refused() -> None:
    with pytest.raises(RewindError, match="--max_rows must be at least 1, not 0"):
        BestOfNArguments(max_rows=0)
