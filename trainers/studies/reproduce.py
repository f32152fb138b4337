"""The main job with larger budgets over several seeds: a file a finished seed, their mean, and the page of tables."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rl.errors import RewindError
from rl.evaluation.intervals import mean_of_runs, wilson
from rl.models.hub import folder_of
from rl.models.known import BASE_OF_WORLD, CARD_FILE, JUDGES, SHIPPED_RUNS
from rl.running.files import read_json, write_whole
from rl.running.run_folder import claim, git_revision
from trainers.studies.demo.job import DIFFERENCES_FILE, main_job, splits_of
from trainers.studies.demo.story import Budget

logger = logging.getLogger("rl")
WORLD = "tabletop"
FAMILIES = {"chameleon": BASE_OF_WORLD[WORLD]}
"""Family of the model -> its shipped base."""
BUDGET = Budget(
    labelled=1000,
    videos=4000,
    selected=4000,
    test=1000,
    validation=200,
    idm_steps=800,
    fdm_steps=1600,
    sentences=8,
    greedy_labels=1,
    idm_on_video_steps=800,
    equal_compute_steps=6000,
    bootstrapped_steps=6000,
    continued_steps=4500,
    grpo_steps=384,
    grpo_prompts=16,
    grpo_evaluations=6,
    grpo_validation=64,
    best_of_n_steps=600,
    rounds=3,
    candidates=32,
    searched=300,
    fitted_candidates=16,
)
"""Few labels and much video, supervised training to its end: where the method is for (docs/findings/few-labels.md)."""
RECIPE = 6
"""Raised when a stage does something else with the same amounts: a seed's file of an older recipe is not reused. That a
row is left out where another says more is no other recipe."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy")


def family_of(base: str) -> str:
    """The family of a base, by name or folder, as its card says.

    Raises:
        RewindError: a base without a card, or one of a shipped base's family, whose results would be taken for its.
    """
    file = folder_of(base) / CARD_FILE
    family = read_json(file).get("family") if file.is_file() else None
    if not isinstance(family, str):
        raise RewindError(f"--base {base}: there is no {file} that names a family, as pretrain_base.py writes it")
    if family in FAMILIES and base != FAMILIES[family]:
        raise RewindError(f"--base {base} is a {family}, whose results are those of the shipped {FAMILIES[family]}")
    return family


def config_of(family: str, seed: int, budget: Budget, base: str | None = None) -> dict[str, Any]:
    """What decides a seed's figures: world, base and judge (digests of their weights), budget, seed.

    Raises:
        RewindError: a family without a shipped base, and no base given.
    """
    base = base or FAMILIES.get(family)
    if base is None:
        raise RewindError(f"--family {family}: there are {', '.join(FAMILIES)}; of others give a --base")
    folders = {"base": folder_of(base)}
    if base in JUDGES:  # else the job trains one
        folders["judge"] = SHIPPED_RUNS[JUDGES[base]]
    amounts = budget.told()
    if not budget.bootstrapped_steps:  # younger than committed results, too
        del amounts["bootstrapped_steps"]
    return {
        "family": family,
        "world": WORLD,
        "recipe": RECIPE,
        **{name: _digest(folder) for name, folder in folders.items()},
        "seed": seed,
        "budget": amounts,
    }


def versions() -> dict[str, str]:
    """What figures are told with: Python and the libraries that they depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _digest(folder: Path) -> str:
    """Of all weights in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def hash_of(config: dict[str, Any]) -> str:
    """A short name for a config's values."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def one_seed(
    family: str, seed: int, budget: Budget, output: Path, results: Path, base: str | None = None
) -> dict[str, Any]:
    """A seed's file: the one that is there if its config is the same, else the job is run (or gone on with)."""
    config, file = config_of(family, seed, budget, base), results / f"{family}-{seed}.json"
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept.get("config_hash") == hash_of(config):
            logger.warning("%s: kept from an earlier run with the same config", file)
            return kept
        logger.warning("%s was made with another config: the seed is run again", file)
    run = claim(output / f"{family}-{seed}", "reproduce.py", config, resume=True)
    found = main_job(config["world"], splits_of(config["world"]), base, run, seed, budget, base_steps=1)
    progress = json.loads((run / "progress.json").read_text(encoding="utf-8"))
    made = {
        "config_hash": hash_of(config),
        "config": config,
        "git_revision": git_revision(),
        "versions": versions(),
        "results": found,
        "curves": progress["curves"],
        "differences": json.loads((run / DIFFERENCES_FILE).read_text(encoding="utf-8")),
    }
    results.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(made) + "\n")
    return made


def of_other_families(results: Path, family: str) -> dict[str, list[dict[str, Any]]]:
    """The seed files of the families that are not run now, by family, in the order of their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(results.glob("*-[0-9]*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if (other := kept["config"]["family"]) != family:
            found.setdefault(other, []).append(kept)
    return {name: sorted(seeds, key=lambda seed: seed["config"]["seed"]) for name, seeds in found.items()}


def taken_together(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`{"seeds": [...], "mean": ...}` of seed files; intervals by bootstrap of the cases within each seed."""
    each = [seed["results"] for seed in seeds]
    mean: dict[str, Any] = _mean(each)
    mean.pop("seed")
    mean["data"].get("premise", {}).get("idm", {}).pop("confused", None)  # sentences of each seed have no mean
    for name, system in mean["fdm"].items():
        numbers = [one["fdm"][name] for one in each]
        right = sum(round(m["success"] * m["n"]) for m in numbers)
        system["ci95"] = list(wilson(right, sum(m["n"] for m in numbers)))
    mean["paired"] = {
        name: {key: list(mean_of_runs([seed["differences"][name][key] for seed in seeds])) for key in entry}
        for name, entry in seeds[0]["differences"].items()
        if all(name in seed["differences"] for seed in seeds)  # others started from another model
    }
    return {"seeds": each, "mean": mean}


def _mean(values: Sequence[Any]) -> Any:
    """Mean of equal structures of numbers; what only some have is left out (or is None), words stay if all agree,
    and lists of several lengths are None.
    """
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, dict):
        return {key: _mean([v[key] for v in values]) for key in first if all(key in v for v in values)}
    if isinstance(first, list):
        if len({len(value) for value in values}) > 1:
            return None
        return [_mean(row) for row in zip(*values, strict=True)]
    if isinstance(first, str):
        return first if len(set(values)) == 1 else None
    return float(np.mean(values))
