"""SIGKILL at any moment, then `--resume`: every training script and `label.py` end as if nothing had happened.

Two kills run always; twenty, over all scripts, are marked slow.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl.data.candidates.store import CandidateStore

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL: list[Any] = ["--per_device_train_batch_size", 4, "--save_steps", 1, "--logging_steps", 1]
SMALL += ["--gradient_checkpointing", "false", "--learning_rate", 1e-3]
REWARDS = ["--rewards", "idm_likelihood", "keep_unchanged=0.25"]


def command(script: str, world: Path, start: Path, output: Path, steps: int = 3) -> list[str]:
    """A short run of a script, with a checkpoint after each step."""
    triplets, models = ["--triplets", world / "triplets.json"], ["--fdm", start, "--idm", "tabletop-chameleon"]
    small = [*SMALL, "--max_steps", steps]
    improve = [*models, *triplets, "--limit", 6, *REWARDS, *small]
    rounds = ["--num_candidates", 4, "--rounds", 2]
    arguments: dict[str, list[Any]] = {
        "train_fdm": ["--base", "tabletop-chameleon", *triplets, *small, "--lora_r", 4],
        "train_grpo": [*improve, "--num_generations", 4, "--beta", 0.1],
        "train_best_of_n": [*improve, *rounds],
        "train_dpo": [*improve, *rounds, "--min_gap", 0],
        "label": ["--idm", "tabletop-chameleon", "--pairs", world / "triplets.json", "--chunk_size", 1],
    }
    folder = ["--output" if script == "label" else "--output_dir", output]
    return [sys.executable, f"scripts/{script}.py", *map(str, [*arguments[script], *folder])]


def run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def progress(output: Path) -> int:
    """How much of a run is kept: whole checkpoints, or chunks of labels."""
    words = output / "words.jsonl"
    chunks = words.read_text().count("\n") if words.is_file() else 0
    return chunks + len(list(output.rglob("checkpoint-*/checkpoint.json")))


def kill_at(argv: list[str], output: Path, kept: int, pause: float) -> bool:
    """Start a run and kill it `pause` seconds after it has kept so much; whether it was still running then."""
    process = subprocess.Popen(argv, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not ((output / "run.json").is_file() and progress(output) >= kept) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of losses and rewards: each step once, in order."""
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag in ("train/loss", "train/reward", "train/grad_norm")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def outcome(script: str, output: Path) -> dict[str, Any]:
    """What must not depend on kills: the result's bytes, and each step's metrics and each candidate once."""
    if script == "label":
        return {"triplets": (output / "triplets.json").read_bytes()}
    found: dict[str, Any] = {"adapter": (output / "adapter" / "adapter_model.safetensors").read_bytes()}
    for folder in sorted({file.parent for file in output.rglob("events.out.tfevents.*")}):
        found[str(folder.relative_to(output))] = scalars(folder)
    if (output / "candidates").is_dir():
        rows = CandidateStore(output / "candidates").rows()
        kept = [(*(row[key] for key in ("seed", "step", "prompt", "candidate", "ids", "total")),) for row in rows]
        found["candidates"] = sorted(kept, key=repr)
    for file in sorted(output.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[str(file.relative_to(output))] = [
            (row["step"], row.get("loss"), row.get("reward")) for row in rows if "loss" in row
        ]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "world"
    run([sys.executable, "scripts/make_world.py", "--num_triplets", "12", "--num_videos", "0", "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def start(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "fdm"
    run(command("train_fdm", world, folder, folder))
    return folder


def survives(script: str, kills: int, seed: int, world: Path, start: Path, folder: Path) -> None:
    """Each kill comes at a random moment of the step after the next checkpoint, be that a rollout or the saving."""
    rng = random.Random(seed)
    whole, cut = folder / "whole", folder / "cut"
    steps = kills + 2
    run(command(script, world, start, whole, steps))
    kept = sorted(file.stat().st_mtime for file in whole.rglob("checkpoint-*/checkpoint.json"))
    step = (kept[-1] - kept[0]) / (len(kept) - 1) if len(kept) > 1 else 0.05
    argv, resume = command(script, world, start, cut, steps), ["--resume"] + ([] if script == "label" else ["true"])
    for number in range(kills):
        again = argv if number == 0 or not cut.exists() else [*argv, *resume]
        hit = kill_at(again, cut, progress(cut) + 1, rng.uniform(0, step))
        assert hit or number > 0  # else the run had ended before it was killed, and nothing would be tested
    run([*argv, *resume] if cut.exists() else argv)
    assert outcome(script, cut) == outcome(script, whole)


@pytest.mark.parametrize("script", ["train_grpo", "label"])
def test_a_kill_changes_nothing(script: str, world: Path, start: Path, tmp_path: Path) -> None:
    survives(script, 1, 0, world, start, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_fdm", "train_grpo", "train_best_of_n", "train_dpo", "label"])
def test_four_kills_change_nothing(script: str, world: Path, start: Path, tmp_path: Path) -> None:
    survives(script, 4, 1, world, start, tmp_path)
