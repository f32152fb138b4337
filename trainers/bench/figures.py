"""All arms in fresh processes, one after the other and in turns, and the figures from what they measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tqdm.auto import tqdm

from rl.errors import RewindError
from trainers.bench.arms import NOT_IN_SMOKE, PARTS
from trainers.bench.passes import rerank_passes
from trainers.plan.arithmetic import Job, computed
from trainers.plan.shapes import KNOWN

Raw = dict[str, dict[str, dict[str, Any]]]
Run = Callable[[str, str, str], dict[str, Any]]
BASELINES = ("baseline", "static")
ROUNDS = {"smoke": 1, "full": 3}

# figure: (part, what is compared, 'ratio' = ours / baseline or 'speedup' = baseline / ours; of several the best one)
FIGURES = {
    "sampler_speedup": ("sampler", "seconds", "speedup"),
    "sampler_256_speedup": ("sampler_256", "seconds", "speedup"),
    "sampler_1024_speedup": ("sampler_1024", "seconds", "speedup"),
    "rollout_cache_ratio": ("rollout_cache", "bytes", "ratio"),
    "scorer_many_actions_speedup": ("scorer", "seconds", "speedup"),
    "label_speedup": ("labels_256", "seconds", "speedup"),
    "logprob_memory_ratio": ("logprobs", "bytes", "ratio"),
    "logprob_time_ratio": ("logprobs", "seconds", "ratio"),
    "grpo_step_speedup": ("grpo_step", "seconds", "speedup"),
    "model_state_ratio": ("state", "bytes", "ratio"),
    "mining_of_decode": ("mining", "seconds", "speedup"),  # 1 would be mining as fast as decoding alone
}


def bench(
    preset: str,
    output: Path,
    parts: Sequence[str] = (),
    run: Run | None = None,
    fdm: str | None = None,
    triplets: Path | None = None,
) -> dict[str, Any]:
    """Measure parts (all if none is named) and write `output/bench.json`; returns what is in it.

    With a trained forward model `fdm` also `rerank_passes`, on scenes of the tabletop or on `triplets`.

    Raises:
        RewindError: an unknown part, or an arm that fails.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise RewindError(f"there is no part '{unknown[0]}' to measure: choose of {', '.join(PARTS)}")
    usual = [part for part in PARTS if preset == "full" or part not in NOT_IN_SMOKE]
    chosen = [part for part in PARTS if part in (parts or usual)]
    raw: Raw = {}
    found: dict[str, Any] = {}
    passes = rerank_passes(fdm, triplets) if fdm is not None else None
    output.mkdir(parents=True, exist_ok=True)
    with tqdm(total=ROUNDS[preset] * sum(len(PARTS[part][1]) for part in chosen)) as bar:
        for part in chosen:  # what is measured is kept, should a later part be interrupted
            bar.set_description(part)
            raw[part] = measure_part(part, preset, run or in_a_fresh_process, bar.update)
            found = {**figures(raw), "preset": preset, "raw": raw, "machine": machine(), "versions": versions()}
            if passes is not None:
                found |= {"rerank_passes": passes["rerank_passes"], "raw": {**raw, "passes": passes}}
            beside = output / ".bench.json"
            beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            beside.replace(output / "bench.json")
    return found


def measure_part(part: str, preset: str, run: Run, done: Callable[[int], Any]) -> dict[str, dict[str, Any]]:
    """Medians over all rounds, with the command and every single measurement beside them."""
    arms = PARTS[part][1]
    every: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number in range(ROUNDS[preset]):  # in turns, and each arm first in every other round
        for arm in arms if number % 2 == 0 else reversed(arms):
            every[arm].append(run(part, arm, preset))
            done(1)
    return {arm: _summary(every[arm], command(part, arm, preset)) for arm in arms}


def _summary(rounds: list[dict[str, Any]], words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"command": " ".join(["python", *words])}
    for key in rounds[0]:
        values = [value for one in rounds for value in (one[key] if isinstance(one[key], list) else [one[key]])]
        found[key], found[f"all_{key}"] = median(values), values
    return found


def command(part: str, arm: str, preset: str) -> list[str]:
    """The words after `python` that measure one arm."""
    return ["-m", "trainers.bench.arms", part, arm, "--preset", preset]


def in_a_fresh_process(part: str, arm: str, preset: str) -> dict[str, Any]:
    """What one arm measures in a process of its own."""
    done = subprocess.run([sys.executable, *command(part, arm, preset)], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing said"]
        raise RewindError(f"the arm '{arm}' of '{part}' failed (exit code {done.returncode}): {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def figures(raw: Raw) -> dict[str, Any]:
    """The figures whose parts were measured."""
    found: dict[str, Any] = {}
    for name, (part, key, kind) in FIGURES.items():
        if part in raw:
            ours, other = raw[part]["ours"][key], min(raw[part][arm][key] for arm in raw[part] if arm in BASELINES)
            found[name] = ours / other if kind == "ratio" else other / ours
    if "scorer_256" in raw:  # 1 would be as fast as counting tokens allows
        arms = raw["scorer_256"]
        found["scorer_of_token_limit"] = arms["baseline"]["seconds"] / arms["ours"]["seconds"] / arms["ours"]["limit"]
    if "encoding" in raw:  # 1 would be as fast as the image encoder alone
        taken = raw["encoding"]["encoding"]
        turns = zip(taken["all_encoder_seconds"], taken["all_seconds"], strict=True)
        found["encoding_of_encoder"] = median(alone / whole for alone, whole in turns)
    if "epoch" in raw:
        arms = raw["epoch"]
        found["epoch_cache_speedup"] = arms["epoch_of_pictures"]["seconds"] / arms["epoch"]["seconds"]
    if "mining" in raw:
        found["mining_dis_of_decode"] = raw["mining"]["baseline"]["seconds"] / raw["mining"]["dis"]["seconds"]
    if "store" in raw:
        found["store_bytes_a_million"] = raw["store"]["ours"]["bytes_a_million"]
        found["store_dpo_bytes_a_million"] = raw["store"]["dpo"]["bytes_a_million"]
    for name, begin, arm in (
        ("sft", "sft_data", "ours"),
        ("grpo", "grpo_data", "grpo"),
        ("aurora", "sft_aurora", "ours"),
    ):
        data = {int(part.rpartition("_")[2]): raw[part][arm] for part in raw if part.startswith(f"{begin}_")}
        if len(data) > 1:  # 1 would be memory that does not grow with the number of triplets
            found[f"{name}_memory_growth"] = data[max(data)]["bytes"] / data[min(data)]["bytes"]
    if "margin" in raw:
        found["margin_rows"] = raw["margin"]["margin"]["rows"]
    if "state_of_shipped_base" in raw:
        shipped = raw["state_of_shipped_base"]
        shipped["compared"] = {"ratio": shipped["ours"]["bytes"] / shipped["baseline"]["bytes"]}
    if "state" in raw:
        peaks = [raw["state"][arm]["peak"] for arm in ("ours", "baseline")]
        raw["state"]["compared"] = {"peak_ratio": peaks[0] / peaks[1]}
        raw["state"]["computed_7b"] = computed(KNOWN["chameleon-7b"], Job(lora_r=16))
    chosen = {part: arms["select"]["seconds"] for part, arms in raw.items() if "select" in arms}
    selection = {part.removeprefix("selection_"): seconds for part, seconds in chosen.items()}
    return found | ({"selection_seconds": selection} if selection else {})


def machine() -> dict[str, Any]:
    """Where it was measured."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    named = {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}
    return {**named, "threads": torch.get_num_threads(), "device": device, "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Versions of what does the work."""
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "numpy", "opencv-python-headless")}
