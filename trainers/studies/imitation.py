"""Imitating the inverse model's labels, or being rewarded by it, on the same labelled video of several sizes.

SWIRL (arXiv 2602.06130) finds that the more of its inverse model's labels a forward model imitates the worse it gets,
and that GRPO on the same pairs gains. Here both are held against each other by the world's oracle, from the `sft` of
runs of the main job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig
from transformers import set_seed

from rl.data.importance import Importance
from rl.errors import RewindError
from rl.evaluation.intervals import mean_of_runs
from rl.models.known import LINEAR_LAYERS
from rl.report import markdown
from rl.running.files import read_json
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter
from trainers.sft.rows import role_rows
from trainers.studies.demo.fitting import LORA_ALPHA, fit_adapter
from trainers.studies.demo.labels import labelled_by_idm
from trainers.studies.demo.mixes import grpo_rewards
from trainers.studies.demo.report import how_sure
from trainers.studies.demo.results import Cases, of_system
from trainers.studies.demo.story import Story
from trainers.studies.grpo_settings import start_of
from trainers.studies.shared import GROUP, PROMPTS, attached, check_runs, drop, grpo_from, kept, short

START = "sft"
ARMS = {
    "continued": "`sft` goes on, on the labelled video alone",
    "merged": "SFT from the base on labelled triplets and labelled video, as `bootstrapped`",
    "grpo": "GRPO from `sft`, which tries the sources and words of the labelled video",
    "merged_grpo": "the same GRPO from `merged`",
}
COMPARED = (("grpo", "continued"), ("grpo", "merged"), ("merged_grpo", "merged"), ("merged_grpo", "continued"))
MEASURES = {
    "success": ("success, T 1", 100.0),
    "success_at_best_temperature": ("success, best T", 100.0),
    "judge": ("judge, of 10", 1.0),
    "copy_rate": ("copies", 100.0),
}


@dataclass(frozen=True)
class Amounts:
    """How much is imitated or tried, and on how much it is measured; `validation` cases choose the temperatures."""

    sizes: tuple[int, ...] = (1000, 2000, 4000)
    grpo_steps: int = 128
    cases: int = 1000
    validation: int = 200

    def __post_init__(self) -> None:
        if not self.sizes or min(*self.sizes, self.grpo_steps, self.cases, self.validation) < 1:
            raise RewindError("give sizes, steps and cases, each at least 1")


Measured = dict[str, Any]
Run = dict[str, Measured]
"""'start' and '<arm>-<size>' -> `seconds`, `metrics`, `by_case`."""


def check(runs: Sequence[Path], amounts: Amounts) -> list[int]:
    """Look at the input before any work; returns how many labelled triplets the models of each run learned from.

    Raises:
        RewindError: a folder without what is needed, two of one name, fewer selected labels than the largest size.
    """
    check_runs(runs, ("idm", START, "bootstrapped"))
    for run in runs:
        if (selected := len(labelled_by_idm(run)[0])) < max(amounts.sizes):
            raise RewindError(f"--sizes {max(amounts.sizes)}: {run} has {selected} selected labels, give at most that")
    return [read_json(run / "run.json")["config"]["budget"]["labelled"] for run in runs]


def study(run: Path, amounts: Amounts, output: Path) -> Run:
    """All arms at all sizes; what an earlier call with the same amounts did is kept."""
    story = start_of(run, amounts.validation)
    test, validation = Cases(story, "test", amounts.cases), Cases(story, "validation", amounts.validation)
    measured = partial(_measured, story, test, validation)
    found = {"start": kept(output / "start", partial(measured, run / START))}
    order = np.random.default_rng(story.seed).permutation(len(story.synthetic))
    for size in sorted(amounts.sizes):
        video = [story.synthetic[n] for n in order[:size]]
        for arm in ARMS:
            folder = output / f"{arm}-{size}"
            train = partial(_train, story, arm, video, amounts, output / f"merged-{size}", folder)
            found[folder.name] = kept(folder, partial(_trained, train, partial(measured, folder)))
    return found


def _trained(train: Callable[[], None], measure: Callable[[], Measured]) -> Measured:
    began = time.monotonic()
    train()
    return {"seconds": time.monotonic() - began, **measure()}


def _train(story: Story, arm: str, video: Sequence[Triplet], amounts: Amounts, merged: Path, folder: Path) -> None:
    """Train an arm's adapter into its folder."""
    vlm, budget = story.vlm, story.budget
    set_seed(story.seed)
    if arm in ("continued", "merged"):
        known = story.labelled if arm == "merged" else []
        if arm == "continued":
            attached(story, story.output / START, "learner")
        else:
            drop(story, "learner")
            rank = budget.fdm_rank
            lora = LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, target_modules=set(LINEAR_LAYERS))
            add_adapter(vlm, lora, "learner")
        rows = role_rows(vlm, "fdm", [*known, *video], Importance())
        fit_adapter(
            story, str(folder.resolve()), "learner", "fdm", rows, budget.fdm_steps, budget.bootstrapped_learning_rate
        )
    else:
        begin = story.output / START if arm == "grpo" else merged
        attached(story, begin, "begin")
        rewards = grpo_rewards(story, "begin", story.idm)
        grpo_from(story, "fdm", begin, video, rewards, amounts.grpo_steps, story.seed, folder)


def _measured(story: Story, test: Cases, validation: Cases, run: Path) -> Measured:
    """M of a forward model and, case by case, what differences are taken of."""
    attached(story, run, "measured")
    metrics, each = of_system("measured", test, validation)
    for cases in (test, validation):
        cases.forget("measured")
    return {"metrics": metrics, "by_case": {key: short(values) for key, values in each.items()}}


def table(runs: Sequence[Run]) -> str:
    """Markdown: the start, then each arm at each size minus the start, mean of the runs with paired 95 % intervals."""
    head = ["size", "arm", *(title for title, _ in MEASURES.values()), "seconds"]
    start = [float(np.mean([np.mean(run["start"]["by_case"][key]) for run in runs])) for key in MEASURES]
    first = [f"{value * times:.1f}" for value, (_, times) in zip(start, MEASURES.values(), strict=True)]
    rows = [["", f"the start, `{START}`", *first, ""]]
    for name in runs[0]:
        if name != "start":
            arm, size = name.rsplit("-", 1)
            cells = [_cell(runs, name, "start", key) for key in MEASURES]
            rows.append([size, f"`{arm}`", *cells, f"{np.mean([run[name]['seconds'] for run in runs]):.0f}"])
    return markdown.table(head, rows)


def _difference(runs: Sequence[Run], ours: str, theirs: str, key: str) -> tuple[float, float, float]:
    return mean_of_runs([np.subtract(run[ours]["by_case"][key], run[theirs]["by_case"][key]) for run in runs])


def _cell(runs: Sequence[Run], ours: str, theirs: str, key: str) -> str:
    difference, low, high = (MEASURES[key][1] * x for x in _difference(runs, ours, theirs, key))
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"


def page(told: dict[str, Any]) -> str:
    """The page that `study_imitation.py` writes from its JSON."""
    runs, sizes = list(told["runs"].values()), tuple(told["amounts"]["sizes"])
    amounts = Amounts(**{**told["amounts"], "sizes": sizes})
    command = f"python scripts/study_imitation.py --runs {' '.join(told['runs'])}"
    for name, value in asdict(amounts).items():
        command += f" --{name} {' '.join(map(str, value)) if name == 'sizes' else value}"
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    labelled = " and ".join(f"{count:,}" for count in sorted({*told["labelled"]}))
    about = (
        f"From the `{START}` of {len(runs)} run(s) of the main job, one a seed, which learned from {labelled} labelled "
        "triplets, and its labelled video: the pairs that the IDM named, the FDM verified and the IDM's likelihood "
        "selected, a random part of each size. GRPO: "
        f"{amounts.grpo_steps} steps of {PROMPTS['fdm']} x {GROUP} candidates with the main job's reward and settings, "
        "rewarded by the IDM that labelled; SFT: steps and rate of the main job, with token weights. Measured by the "
        f"oracle on {amounts.cases} test scenes a seed with the same noise: one sample at temperature 1, one at the "
        f"temperature that was best on {amounts.validation} validation scenes. Differences are paired, means of the "
        "seeds with 95 % intervals; seconds are of training."
    )
    words = [
        f"- {size} pairs, `{ours}` - `{theirs}`, {MEASURES[key][0]}: "
        + how_sure(_difference(runs, f"{ours}-{size}", f"{theirs}-{size}", key)).replace(" of success", "")
        for ours, theirs in COMPARED
        for key in ("success", "success_at_best_temperature")
        for size in sorted(sizes)
    ]
    arms = [f"- `{name}`: {told_of}" for name, told_of in ARMS.items()]
    head = f"Written by `{command} --page FILE`; not by hand. Versions: {versions}."
    title = "# Imitate the inverse model's labels, or be rewarded by it?"
    return "\n".join([title, "", head, "", about, "", *arms, "", table(runs), "", *words, ""])
