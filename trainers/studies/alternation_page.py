"""The page of `study_alternation.py`, written from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl.evaluation.intervals import mean_of_runs
from rl.report import markdown
from trainers.studies.alternation import ARMS, Amounts
from trainers.studies.demo.report import how_sure
from trainers.studies.shared import GROUP, PROMPTS

MEASURES = {
    "success": ("success, T 1", 100.0),
    "success_at_best_temperature": ("success, best T", 100.0),
    "judge": ("judge, of 10", 1.0),
    "copy_rate": ("copies", 100.0),
    "named": ("the IDM names", 100.0),
}
COMPARED = (
    ("alternating", "fdm_alone"),
    ("alternating_at_equal_candidates", "fdm_alone"),
    ("idm_by_sft", "fdm_alone"),
    ("alternating", "idm_by_sft"),
    ("better_idm", "fdm_alone"),
)
Run = dict[str, list[dict[str, Any]]]


def page(told: dict[str, Any]) -> str:
    """Every round of every arm against the start, and the arms' last rounds against each other, in words too."""
    runs, amounts = list(told["runs"].values()), Amounts(**told["amounts"])
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    command = f"python scripts/study_alternation.py --runs {' '.join(told['runs'])} --arms {' '.join(_arms(runs))}"
    command += "".join(f" --{name} {value}" for name, value in told["amounts"].items()) + " --page FILE"
    about = (
        f"From `bootstrapped` and the inverse model of {len(runs)} run(s) of the main job, one a seed; "
        f"{amounts.rounds} rounds, each on a part of its own of the run's pairs from video. A round is "
        f"{amounts.fdm_steps} steps of GRPO of the FDM ({PROMPTS['fdm']} x {GROUP} candidates each, the main job's "
        f"reward and settings) and, where an arm has them, {amounts.idm_steps} of the IDM ({PROMPTS['idm']} x {GROUP} "
        "sentences each, `fdm_likelihood` with `--beta 1`). Measured by the oracle on "
        f"{amounts.cases} test scenes a seed with the same noise: one sample at temperature 1, one at the temperature "
        f"that was best on {amounts.validation} validation scenes; and whether the IDM, greedily, names the true "
        "outcome of the true pair. Differences are paired, means of the seeds with 95 % intervals."
    )
    arms = [f"- `{name}`: {ARMS[name].told}{_steps(name, amounts)}" for name in _arms(runs)]
    last = [
        f"- `{ours}` - `{theirs}`, {MEASURES[key][0]}: {_in_words(runs, ours, theirs, key)}"
        for ours, theirs in COMPARED
        for key in ("success", "success_at_best_temperature", "named")
        if ours in runs[0] and theirs in runs[0] and (key != "named" or ARMS[ours].inverse != "stays")
    ]
    head = f"Written by `{command}`; not by hand. Versions: {versions}."
    lines = [
        "# Do both roles improve each other?",
        "",
        head,
        "",
        about,
        "",
        *arms,
        "",
        "## Every round",
        "",
        table(runs),
    ]
    return "\n".join([*lines, "", "## After the last round", "", *last, ""])


def table(runs: Sequence[Run]) -> str:
    """Markdown: the start, then each round of each arm minus the start, mean of the runs."""
    head = ["arm", "round", *(title for title, _ in MEASURES.values()), "rewards", "seconds"]
    start = [_mean(runs, "start", 0, key) * times for key, (_, times) in MEASURES.items()]
    rows = [["the start", "", *(f"{value:.1f}" for value in start), "", ""]]
    for name in _arms(runs):
        for number in range(len(runs[0][name])):
            cells = [f"`{name}`", str(number + 1)]
            for key, (_, times) in MEASURES.items():
                values = [_case(run, name, number, key) - _case(run, "start", 0, key) for run in runs]
                difference, low, high = (times * x for x in mean_of_runs(values))
                cells.append(f"{difference:+.1f} ({low:+.1f} to {high:+.1f})")
            told = [run[name][number] for run in runs]
            for_role = {
                role: [float(np.mean([one["reward"][role][end] for one in told])) for end in (0, -1)]
                for role in told[0]["reward"]
            }
            cells.append("; ".join(f"{role} {a:.2f} to {b:.2f}" for role, (a, b) in for_role.items()))
            rows.append([*cells, f"{np.mean([one['seconds'] for one in told]):.0f}"])
    return markdown.table(head, rows)


def _steps(name: str, amounts: Amounts) -> str:
    """In brackets, where a round of an arm has other numbers of steps than the page says of all."""
    steps = ARMS[name].steps(amounts)
    if ARMS[name].inverse != "grpo" or steps == {"fdm": amounts.fdm_steps, "idm": amounts.idm_steps}:
        return ""
    drawn = {role: number * PROMPTS[role] * GROUP for role, number in steps.items()}
    return (
        f" (a round: {drawn['fdm']:,} pictures in {steps['fdm']} steps, {drawn['idm']:,} sentences in {steps['idm']})"
    )


def _arms(runs: Sequence[Run]) -> list[str]:
    return [name for name in runs[0] if name != "start"]


def _case(run: Run, arm: str, number: int, key: str) -> np.ndarray:
    return np.asarray(run[arm][number]["by_case"][key], dtype=float)


def _mean(runs: Sequence[Run], arm: str, number: int, key: str) -> float:
    return float(np.mean([_case(run, arm, number, key).mean() for run in runs]))


def _in_words(runs: Sequence[Run], ours: str, theirs: str, key: str) -> str:
    difference = mean_of_runs([_case(run, ours, -1, key) - _case(run, theirs, -1, key) for run in runs])
    return how_sure(difference).replace(" of success", "")
