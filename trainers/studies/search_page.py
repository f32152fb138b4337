"""The page of the study of search: every number from what `scripts/study_search.py` keeps as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl.evaluation.intervals import mean_of_runs
from rl.report.markdown import table
from trainers.studies.search import CALIBRATION, ENSEMBLE, ORACLE, REWARDS, STEPS

COMPARED_AT = 8
"""The N at which best of N is looked at closely, or the largest below it."""


def page_of(found: dict[str, Any], name: str) -> str:
    """Markdown of one or several runs: means over runs of means over scenes, differences with 95 % intervals.

    Args:
        found: `command`, `system`, `scenes`, `candidates`, `second_idm`, `versions`, and `runs`, each with `run`,
            `seed`, `world` and `cases`, which is what `search_study.study` gives.
        name: the JSON file that it was read from.
    """
    seeds = [str(run["seed"]) for run in found["runs"]]
    intro = (
        f"World `{found['runs'][0]['world']}`, forward model `{found['system']}`, inverse model `{found['idm']}`, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}, {found['scenes']} test scenes each. Versions: "
        + ", ".join(f"{library} {number}" for library, number in found["versions"].items())
        + ". Differences are paired on the same scenes, in points, mean of the seeds, with a 95 % interval by "
        "bootstrap of the scenes within each seed: what another seed would give can lie outside.\n"
    )
    parts = [
        "# Search at inference: results\n",
        f"Written by `{found['command']}` from `{name}`; not by hand.\n",
        intro,
    ]
    written = {"best_of_n": _best, "rollout": _rollouts, "refinement": _refinement}
    for part, write in written.items():
        if part in found["runs"][0]["cases"]:
            parts += write(found, _Part([run["cases"][part] for run in found["runs"]]))
    return "\n".join(parts)


class _Part:
    """Figures of one kind of search over runs."""

    def __init__(self, runs: Sequence[dict[str, list[float]]]) -> None:
        self.runs, self.names = runs, list(runs[0])

    def of_run(self, name: str) -> list[float]:
        return [float(np.mean(run[name])) for run in self.runs]

    def mean(self, name: str) -> float:
        return float(np.mean(self.of_run(name)))

    def difference(self, ours: str, theirs: str) -> str:
        values = [np.subtract(run[ours], run[theirs]) for run in self.runs]
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in mean_of_runs(values)))


def _best(found: dict[str, Any], part: _Part) -> list[str]:
    numbers = [int(name.split()[1]) for name in part.names if name.startswith(f"{ORACLE} ")]
    rewards = [name.split()[0] for name in part.names if name.endswith(" 1")]
    at = max(n for n in numbers if n <= COMPARED_AT)
    curves = table(
        ["success % of the best of N by", *(f"N {n}" for n in numbers)],
        [[f"`{name}`", *(f"{100 * part.mean(f'{name} {n}'):.1f}" for n in numbers)] for name in rewards],
    )
    room = part.mean(f"{ORACLE} {at}") - part.mean(f"{ORACLE} 1")
    rows = []
    for name in rewards:
        ours = f"{name} {at}"
        used = f"{100 * (part.mean(ours) - part.mean(f'{name} 1')) / room:.0f} %" if room else "there is none"
        against = "" if name in (REWARDS[0], ORACLE) else part.difference(ours, f"{REWARDS[0]} {at}")
        each = [f"{100 * share:.1f}" for share in part.of_run(ours)]
        rows.append([f"`{name}`", *each, part.difference(ours, f"{name} 1"), against, used])
    seeds = [f"seed {run['seed']}, %" for run in found["runs"]]
    head = [f"at N {at}, by", *seeds, "minus N 1", f"minus `{REWARDS[0]}`", "head-room used"]
    others = ", ".join(f"`{name}`" for name in found["second_idm"])
    note = (
        f"`{ENSEMBLE}`: mean minus standard deviation of `{REWARDS[0]}` over the run's inverse model and {others}."
        if others
        else f"No second inverse model was given (`--second_idm`), so there is no row for `{ENSEMBLE}`."
    )
    drawn = f"An unbiased estimate over subsets of {2 * found['candidates']} samples a scene at temperature 1."
    return ["## Best of N\n", f"{drawn} {note}\n", curves, table(head, rows), *_calibrated(part)]


def _calibrated(part: _Part) -> list[str]:
    """Whether the ensemble's spread can be believed."""
    if not all(name in part.names for name in CALIBRATION):
        return []
    each, wrong = (", ".join(f"{100 * share:.0f} %" for share in part.of_run(name)) for name in CALIBRATION)
    return [
        f"The spread of `{ENSEMBLE}` is larger for a wrong reward than for a right one in {each} of the pairs (50 % "
        f"says nothing). Wrong are {wrong} of the rewards, if as many candidates are taken for right as are right.\n"
    ]


def _rollouts(found: dict[str, Any], part: _Part) -> list[str]:
    rows = []
    for number, name in enumerate(part.names):
        gained = part.difference(name, part.names[number - 1]) if "beam" in name else ""
        over_one = part.difference(name, part.names[0]) if number else ""
        rows.append([name, f"{100 * part.mean(name):.1f}", over_one, gained])
    head = [f"{STEPS} steps", "success %", f"minus {part.names[0]}", "beam minus greedy"]
    return [f"## {STEPS} steps\n", table(head, rows)]


def _refinement(found: dict[str, Any], part: _Part) -> list[str]:
    rows = []
    for name in part.names:
        if "plain" not in name or name.endswith("cost"):
            continue
        refined = name.replace("plain", "refined")
        rates = [f"{100 * part.mean(key):.1f}" for key in (name, refined)]
        cost = f"{part.mean(f'{refined}: cost'):.1f}"
        rows.append([name.replace("plain", "N"), *rates, part.difference(refined, name), cost])
    head = ["at the cost of N", "plain %", "refined %", "refined minus plain", "cost used"]
    return ["## Refinement at equal cost\n", table(head, rows)]
