"""The training scripts on several processes: how they are launched, killed and resumed, or stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ROOT
from safetensors.torch import load_file
from test_sharding import ENVIRONMENT, LAUNCH, TORCHRUN, config, end, run

from rl import load_fdm


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "out"
    done = run([sys.executable, "scripts/make_world.py", "--num_triplets", 40, "--num_videos", 0, "--output", folder])
    assert done.returncode == 0, done.stdout
    return folder / "triplets.json"


def fdm_flags(world: Path, output: Path, batch: int, steps: int) -> list[Any]:
    flags = ["scripts/train_fdm.py", "--base", "tabletop-chameleon", "--triplets", world, "--output_dir", output]
    flags += ["--max_steps", steps, "--per_device_train_batch_size", batch, "--save_steps", 2, "--learning_rate", 1e-3]
    return [*flags, "--logging_steps", 1, "--lora_r", 4, "--lora_dropout", 0, "--gradient_checkpointing", "false"]


def losses(run_folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train_fdm.py` in one process."""
    output = tmp_path_factory.mktemp("alone") / "fdm"
    done = run([sys.executable, *fdm_flags(world, output, 4, 6)])
    assert done.returncode == 0, done.stdout[-4000:]
    return output


def test_the_script_on_two_plain_processes(world: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "fdm"
    done = run([*TORCHRUN, *fdm_flags(world, output, 2, 6)])
    assert done.returncode == 0, done.stdout[-4000:]
    assert losses(output) == pytest.approx(losses(alone), rel=1e-4)
    assert done.stdout.count("the adapter is in") == 1  # said by one process
    assert "Could not find a config file" not in done.stdout  # nor is the Hub asked for the base


@pytest.mark.slow
def test_torchrun_with_deepspeed_is_as_accelerate_launch(world: Path, alone: Path, tmp_path: Path) -> None:
    """Weights are divided, no compiler is needed, and ZeRO-3's checks are of stage 3."""
    output, file = tmp_path / "fdm", config(tmp_path, "zero3").with_suffix(".json")
    command = [*TORCHRUN, *fdm_flags(world, output, 2, 6), "--deepspeed", file]
    done = run(command, PATH="/nowhere", TORCH_EXTENSIONS_DIR=str(tmp_path / "none"))
    assert done.returncode == 0, done.stdout[-4000:]
    assert losses(output) == pytest.approx(losses(alone), rel=1e-4)
    assert len(list(output.glob("checkpoint-6/global_step6/zero_pp_rank_*_model_states.pt"))) == 2
    assert not (output / "run.lock").exists()
    settings = json.loads(file.read_text())
    del settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    file.write_text(json.dumps(settings))
    done = run([*TORCHRUN, *fdm_flags(world, tmp_path / "other", 2, 6), "--deepspeed", file])
    assert "would save no weights under ZeRO-3" in done.stdout
    assert not (tmp_path / "other").exists()


def test_both_roles_on_two_plain_processes(world: Path, tmp_path: Path) -> None:
    more = ["--with_idm", "true", "--gradient_checkpointing", "true", "--gradient_accumulation_steps", 2]
    folders = {1: tmp_path / "one", 2: tmp_path / "two"}
    for processes, output in folders.items():
        python = [sys.executable]
        if processes > 1:
            python += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        done = run([*python, *fdm_flags(world, output, 4 // processes, 3), *more])
        assert done.returncode == 0, done.stdout[-4000:]
    ones, twos = (
        [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        for output in folders.values()
    )
    for name in ("loss_fdm", "loss_idm", "grad_norm"):
        values = [row[name] for row in ones if name in row]
        assert len(values) == 3
        assert [row[name] for row in twos if name in row] == pytest.approx(values, rel=1e-3), name
    for role in ("", "idm"):
        one, two = (load_file(output / role / "adapter" / "adapter_model.safetensors") for output in folders.values())
        assert all(np.allclose(weight, two[name], atol=2e-4) for name, weight in one.items())


@pytest.mark.parametrize("stage", ["zero3", pytest.param("zero2", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_launch_and_the_run_is_resumed(
    stage: str, world: Path, alone: Path, tmp_path: Path
) -> None:
    """And what comes of it is exported to a plain folder that opens as a forward model."""
    output, launcher = tmp_path / "fdm", config(tmp_path, stage)
    command = [*LAUNCH, "--config_file", launcher, *fdm_flags(world, output, 2, 6)]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 200
        while not (output / "checkpoint-2" / "checkpoint.json").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        psutil.Process(process.pid).children()[-1].kill()
        began = time.monotonic()
        assert process.wait(60) != 0
        assert time.monotonic() - began < 60
    finally:
        end(process)
    done = run([*command, "--resume", "true"])
    assert done.returncode == 0, done.stdout[-4000:]
    assert losses(output) == pytest.approx(losses(alone), rel=1e-4)  # no step twice, none left out
    done = run([sys.executable, "scripts/export.py", "--run", output, "--output", tmp_path / "plain"])
    assert done.returncode == 0, done.stdout[-4000:]
    picture = np.zeros((64, 64, 3), np.uint8)
    drawn = [load_fdm(run).sample(picture, "add a red circle", 1, seed=3)[0] for run in (tmp_path / "plain", output)]
    assert (drawn[0].ids == drawn[1].ids).all()
    assert drawn[0].logprob == pytest.approx(drawn[1].logprob, abs=1e-3)


def test_a_launch_that_would_not_shard_is_stopped(world: Path, tmp_path: Path) -> None:
    launcher = config(tmp_path, "zero2")
    command = [*LAUNCH, "--config_file", launcher, *fdm_flags(world, tmp_path / "fdm", 2, 2)]
    done = run(command, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "asks for DeepSpeed and the model is wrapped as" in done.stdout
