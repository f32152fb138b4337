"""The main job from its first stage to its report: what `demo.py` runs once and `reproduce.py` once a seed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rl.running.files import write_whole
from rl.world import World
from rl.worlds import load_splits
from trainers.studies.demo import stages
from trainers.studies.demo.base import open_base
from trainers.studies.demo.report import report
from trainers.studies.demo.results import Cases, Differences, measure
from trainers.studies.demo.story import Budget

RESULTS_FILE, REPORT_FILE, DIFFERENCES_FILE = "results.json", "report.html", "differences.json"


def splits_of(world: str) -> dict[str, World]:
    """A world's splits by name."""
    return load_splits(world, ("train", "validation", "test"))


def main_job(
    world: str, splits: dict[str, World], base: str | None, output: Path, seed: int, budget: Budget, base_steps: int
) -> dict[str, Any]:
    """Run what is left of the job in a claimed folder; `results.json`, `differences.json` and `report.html` come last.

    Args:
        world: the world's name or `file.py:Class`; `splits`: its splits.
        base: a base by name or folder; None for the world's own.
        output: the run folder; what an interrupted run finished in it is taken over.
        seed: of everything.
        budget: how much of everything.
        base_steps: steps of a base for a world that has none.

    Returns:
        The content of `results.json`.
    """
    began = time.monotonic()
    vlm = open_base(base, world, splits["train"], output, base_steps)
    story = stages.begin(splits, vlm, output, seed, budget)
    stages.train_roles(story)
    stages.bootstrap(story)
    stages.improve(story)
    test, validation = Cases(story, "test", budget.test), Cases(story, "validation", budget.validation)
    found: dict[str, Any] = {}
    differences: Differences = {}

    def evaluate() -> None:
        results, by_case = measure(story, test, validation)
        found.update(results)
        differences.update(by_case)

    story.stage("evaluation", evaluate, keep=False)
    page = output / REPORT_FILE
    story.stage("report", lambda: write_whole(page, report(story, found, test)), keep=False)
    # A resumed run counts what its stages took, not the pause between.
    seconds = {"total": max(time.monotonic() - began, sum(story.seconds.values())), **story.seconds}
    results = {"world": found.pop("world"), "seed": found.pop("seed"), "seconds": seconds, **found}
    by_case = {n: {k: v.round(4).tolist() for k, v in entry.items()} for n, entry in differences.items()}
    write_whole(output / DIFFERENCES_FILE, json.dumps(by_case) + "\n")
    write_whole(output / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    return results
