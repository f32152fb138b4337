"""The page of the study of methods: every number from what `scripts/study_methods.py` keeps as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl.evaluation.intervals import mean_of_runs
from rl.report import markdown
from trainers.studies.demo.report import how_sure
from trainers.studies.grpo_settings import STEPS
from trainers.studies.methods import GROUP, JUDGED, MEASURES, METHODS, START, Amounts


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: the start, then each method minus the start, mean of the runs with paired 95 % intervals."""
    start = [run["start"] for run in runs]
    head = ["", *(title for title, _, _ in MEASURES.values()), "seconds"]
    means = {key: float(np.mean([np.mean(one["by_case"][key]) for one in start])) for key in MEASURES}
    cells = [
        f"{times * means[key]:.1f}" if times > 1 else f"{means[key]:.2f}" for key, (_, _, times) in MEASURES.items()
    ]
    rows = [["the start, `bootstrapped`", *cells, ""]]
    for name in runs[0]:
        if name == "start":
            continue
        cells = [f"{METHODS[name][0]} (`{name}`)"]
        for key, (_, _, times) in MEASURES.items():
            values = [np.subtract(run[name]["by_case"][key], run["start"]["by_case"][key]) for run in runs]
            difference, low, high = (times * x for x in mean_of_runs(values))
            places = 1 if times > 1 else 2
            cells.append(f"{difference:+.{places}f} ({low:+.{places}f} to {high:+.{places}f})")
        cells.append(f"{np.mean([run[name]['seconds'] for run in runs]):.0f}")
        rows.append(cells)
    return markdown.table(head, rows)


def page(told: dict[str, Any]) -> str:
    """The page that `study_methods.py` writes from its JSON: the table, and each method against the start in words."""
    runs, amounts, words = list(told["runs"].values()), Amounts(**told["amounts"]), []
    for name in runs[0]:
        if name != "start":
            for key in ("success", "success_at_best_temperature"):
                values = [np.subtract(run[name]["by_case"][key], run["start"]["by_case"][key]) for run in runs]
                words.append(f"- `{name}`, {MEASURES[key][0]}: {how_sure(mean_of_runs(values))}")
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    chosen = [name for name in runs[0] if name != "start"]
    command = f"python scripts/study_methods.py --runs {' '.join(told['runs'])}"
    command += f" --methods {' '.join(chosen)}" if chosen != list(METHODS) else ""
    command += f" --candidates {amounts.candidates}"
    about = (
        f"Each method starts from `{START}` of {len(runs)} run(s) of the main job, one a seed, draws "
        f"{amounts.candidates} candidates in groups of {GROUP}, rewarded {told['rewarded']}, "
        f"and is measured on {amounts.cases} test "
        "cases a seed with the same noise: one sample at temperature 1, and one at the temperature that was best on "
        f"{amounts.validation} validation cases; the judge IDM, which never rewards, on {JUDGED}; chains of {STEPS} "
        "actions, a quarter as many, four times each at temperature 1. Rows are method minus start, mean of the seeds, "
        "with the paired 95 % interval; seconds are of training, drawing included."
    )
    command += f" --cases {amounts.cases} --validation {amounts.validation} --page FILE"
    head = f"Written by `{command}`; not by hand. Versions: {versions}."
    lines = ["# Ways to improve by rewards, at equal candidates", "", head, "", about, "", table(runs), *words, ""]
    return "\n".join(lines)
