"""Two real processes: every trainer under DeepSpeed's ZeRO gives the numbers of one process, and the bytes are divided.

deepspeed 0.19, accelerate 1.15, TRL 1.16, on gloo. All scenarios share one launch, since a launch takes longer than
most of them (`several_processes.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT
from safetensors.torch import load_file

from trainers.common.sharding import unsupported

SCENARIOS = ["sft:zero1", "sft:zero2", "sft:zero3", "grpo:zero2", "grpo:zero3", "spanning:zero2"]
SCENARIOS += ["trajectories:zero2", "sentences:zero2", "dpo:zero2", "whole:zero2", "whole:zero3"]
SCENARIOS += ["rounds:zero2"]
SCENARIOS += [f"{family}-{kind}:zero3" for family in ("lumina", "liquid", "emu3") for kind in ("sft", "grpo")]
HALF = "half_precision:zero2"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]


def run(command: list[Any], timeout: int = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, of which no rank survives the end."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        end(process)
    return subprocess.CompletedProcess(command, process.returncode, out, "")


def end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a launch; the ranks are in sessions of their own."""
    if process.poll() is None:
        for left in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


def config(folder: Path, stage: str) -> Path:
    """The shipped config of a stage for two processes, with every weight divided however small it is."""
    settings = json.loads((ROOT / "configs/accelerate" / f"{stage}.json").read_text())
    if "stage3_param_persistence_threshold" in settings["zero_optimization"]:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / f"{stage}.json").write_text(json.dumps(settings))
    text = (ROOT / "configs/accelerate" / f"{stage}.yaml").read_text()
    file = folder / f"{stage}.yaml"
    file.write_text(text.replace(f"configs/accelerate/{stage}.json", str(folder / f"{stage}.json")))
    return file


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Scenario -> what each process saw; those of one process under the scenario's bare name."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    names = sorted({spec.partition(":")[0] for spec in SCENARIOS} | {"half"})
    kept = {"REWIND_TEST_SHELF": str(tmp_path_factory.mktemp("shelf"))}  # of the families' checkpoints
    done = run([sys.executable, "tests/several_processes.py", one, *names], **kept)
    assert done.returncode == 0, done.stdout[-4000:]
    for stage in ("zero1", "zero2", "zero3"):
        launcher = config(two, stage)
    done = run([*LAUNCH, "--config_file", launcher, "tests/several_processes.py", two, *SCENARIOS, HALF], **kept)
    assert done.returncode == 0, done.stdout[-4000:]
    found = {name: [values] for name, values in json.loads((one / "0.json").read_text()).items()}
    ranks = [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]
    found |= {spec: [rank[spec] for rank in ranks] for spec in [*SCENARIOS, HALF]}
    for spec in [*names, *SCENARIOS, HALF]:
        folder = (one if spec in names else two) / spec.replace(":", "-")
        file = folder / "adapter" / "adapter_model.safetensors"
        found[spec][0]["adapter"] = load_file(file if file.exists() else folder / "model" / "model.safetensors")
    return found


@pytest.mark.parametrize("spec", SCENARIOS)
def test_what_was_asked_for_runs(results: dict[str, list[dict[str, Any]]], spec: str) -> None:
    for rank in results[spec]:
        assert (rank["engine"], rank["stage"], rank["processes"]) == ("DeepSpeedEngine", int(spec[-1]), 2)


@pytest.mark.parametrize("spec", SCENARIOS)
def test_two_processes_give_the_numbers_of_one(results: dict[str, list[dict[str, Any]]], spec: str) -> None:
    (one,), ranks = results[spec.partition(":")[0]], results[spec]
    for rank in ranks:
        assert rank["loss"] == pytest.approx(one["loss"], rel=1e-5, abs=1e-7)
        assert rank["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        if "grpo" in spec or spec.startswith(("spanning", "trajectories", "sentences")):
            assert rank["reward"] == pytest.approx(one["reward"], rel=1e-5)
            assert rank["reward_std"] == pytest.approx(one["reward_std"], rel=1e-5)
        assert np.allclose(rank["evaluated"], one["evaluated"], rtol=1e-5)
        assert bool(rank["evaluated"]) == spec.startswith("sft:")
        assert rank.get("judged", []) == pytest.approx(one.get("judged", []), rel=1e-5)  # by an adapter beside it
        assert rank.get("totals") == one.get("totals")  # candidates are the same ones, whoever draws them
    ours, theirs = ranks[0]["adapter"], one["adapter"]
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert np.allclose(weight, theirs[name], atol=2e-4), name


def test_a_round_leaves_nothing_of_deepspeed_to_the_next(results: dict[str, list[dict[str, Any]]]) -> None:
    assert [rank["gone"] for spec in ("rounds", "rounds:zero2") for rank in results[spec]] == [True] * 3


def test_bfloat16_is_measured_and_corrected(results: dict[str, list[dict[str, Any]]]) -> None:
    """DeepSpeed keeps the weights in bfloat16: sampler and loss differ a little, and not more from step to step."""
    first, second = results[HALF]
    assert first["gaps"] == second["gaps"]
    assert first["cap"] == 2.0
    live = [gaps for gaps in first["gaps"] if gaps[2] is not None]  # else all groups of the step are dead
    assert live
    for mean, kl, weight in live:
        assert 0 < mean < 0.05
        assert 0 <= kl < 0.01
        assert weight == pytest.approx(1.0, abs=0.05)
    assert all(np.isfinite(norm) for norm in first["grad_norm"])
    assert max(first["grad_norm"]) > 0
    assert all(weight.isfinite().all() for weight in first["adapter"].values())


def test_half_a_batch_gives_other_numbers(results: dict[str, list[dict[str, Any]]]) -> None:
    """The control of the comparison: it would notice processes that do not exchange gradients."""
    assert results["half"][0]["grad_norm"] != pytest.approx(results["sft"][0]["grad_norm"], rel=0.05)


def test_bytes_are_divided(results: dict[str, list[dict[str, Any]]]) -> None:
    for rank in range(2):
        zero1, zero2, zero3 = (results[f"sft:zero{stage}"][rank] for stage in (1, 2, 3))
        for found in (zero1, zero2, zero3):  # two moments of half of the trainable weights
            assert found["optimizer"] == found["trainable"]
        assert zero1["held_gradients"] == zero1["trainable"]
        assert zero2["held_gradients"] == zero2["trainable"] // 2
        assert zero3["held_gradients"] == zero3["trainable"] // 2
        assert zero1["resident"] == zero2["resident"] == zero2["whole"]
        assert zero3["resident"] == 0
        assert zero3["shard"] == zero3["whole"] // 2


def test_all_weights_are_divided_and_saved_whole(results: dict[str, list[dict[str, Any]]]) -> None:
    """Full fine-tuning: also the head, which is gathered for the loss; what is saved opens (a base by itself)."""
    for rank in range(2):
        zero2, zero3 = (results[f"whole:zero{stage}"][rank] for stage in (2, 3))
        assert zero3["trainable"] == zero3["whole"] == zero2["whole"]
        assert zero3["resident"] == 0
        assert zero3["optimizer"] == zero3["trainable"]
    saved = results["whole:zero3"][0]["adapter"]
    assert {"model.embed_tokens.weight", "model.vqmodel.quantize.embedding.weight"} <= saved.keys()
    assert all(weight.numel() for weight in saved.values())


@pytest.mark.parametrize("spec", [spec for spec in SCENARIOS if "-" in spec])
def test_families_are_divided(results: dict[str, list[dict[str, Any]]], spec: str) -> None:
    """All of the language model; the VQ tokenizer lies beside it and encodes where every process has it."""
    for rank in results[spec]:
        assert rank["resident"] == 0
        assert rank["shard"] >= rank["whole"] // 2 > 0
        assert rank.get("gap", 0.0) < 1e-4


def test_a_rollout_gathers_once(results: dict[str, list[dict[str, Any]]]) -> None:
    for rank in results["grpo:zero3"]:
        assert rank["large_gathers"] == len(rank["reward"])
        assert rank["gap"] < 1e-4


@pytest.mark.parametrize("file", sorted((ROOT / "configs/accelerate").glob("*.json")), ids=lambda file: file.stem)
def test_shipped_configs_are_supported(file: Path) -> None:
    assert unsupported(json.loads(file.read_text())) is None
    launcher = yaml.safe_load(file.with_suffix(".yaml").read_text())
    assert launcher["deepspeed_config"]["deepspeed_config_file"] == f"configs/accelerate/{file.name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"type": "AdamW"}}, "'optimizer' or 'scheduler' of its own"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "'nvme'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "zero_force_ds_cpu_optimizer"),
        ({"zero_optimization": {"stage": 3}}, "would save no weights"),
    ],
)
def test_options_that_cannot_be_used_are_named(change: dict[str, Any], message: str) -> None:
    assert message in (unsupported(change) or "")


# ---- the scripts
