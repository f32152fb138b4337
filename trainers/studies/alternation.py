"""Whether both roles improve each other: rounds of GRPO from the `bootstrapped` of runs of the main job, on video.

SWIRL (arXiv 2602.06130) alternates GRPO of the forward and of the inverse role on pairs without words. Arms that differ
in what the inverse model does between the rounds are held against each other, by the world's oracle, after every round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import set_seed

from rewards import load_rewards
from rl.data.labels.labelling import label_pairs
from rl.errors import RewindError
from rl.evaluation import oracle
from rl.models.roles import ForwardDynamics, InverseDynamics, Role
from rl.triplets import Triplet
from trainers.sft.rows import role_rows
from trainers.studies.demo.fitting import fit_adapter
from trainers.studies.demo.labels import mine
from trainers.studies.demo.mixes import grpo_rewards
from trainers.studies.demo.results import Cases, of_system
from trainers.studies.demo.story import Story
from trainers.studies.grpo_settings import start_of
from trainers.studies.shared import GROUP, PROMPTS, attached, grpo_from, kept, short

logger = logging.getLogger("rl")
START = "bootstrapped"
SFT_RATE = 5e-4
"""Of the inverse role: it goes on from an adapter that is trained already."""


@dataclass(frozen=True)
class Arm:
    """What the rounds of an arm are: how the inverse model learns between them, and whether another one rewards.

    `fdm_share` of the forward model's steps are taken; where that is less than all, the inverse model gets as many
    sentences as the forward model was spared pictures, so that arms draw as many candidates in all.
    """

    told: str
    inverse: Literal["stays", "grpo", "sft"] = "stays"
    rewarded_by: str = ""
    fdm_share: float = 1.0

    def steps(self, amounts: Amounts) -> dict[Role, int]:
        """Optimizer steps of either role in a round."""
        fdm = max(1, round(amounts.fdm_steps * self.fdm_share))
        spared = (amounts.fdm_steps - fdm) * PROMPTS["fdm"]
        return {"fdm": fdm, "idm": max(1, round(spared / PROMPTS["idm"])) if self.fdm_share < 1 else amounts.idm_steps}


ARMS = {
    "fdm_alone": Arm("the FDM alone, every shard named by the unchanged IDM"),
    "alternating": Arm("GRPO of both in turns", "grpo"),
    "alternating_at_equal_candidates": Arm("the same with as many candidates as the FDM alone", "grpo", fdm_share=0.5),
    "idm_by_sft": Arm("the IDM by SFT on its own verified words", "sft"),
    "better_idm": Arm("the FDM alone, named and rewarded by the judge", rewarded_by="judge_idm"),
}
"""SWIRL's question is `alternating` minus `fdm_alone`; `better_idm` is what a far better inverse model could give."""


@dataclass(frozen=True)
class Amounts:
    """How much a round trains, and on how much it is measured; `validation` cases choose the temperatures."""

    rounds: int = 3
    fdm_steps: int = 64
    idm_steps: int = 64
    cases: int = 1000
    validation: int = 200

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise RewindError("rounds, steps and cases must be at least 1")


@dataclass
class Start:
    """What all arms of a run start from, and what they are measured on."""

    story: Story
    amounts: Amounts
    idm: Path
    test: Cases
    validation: Cases

    @cached_property
    def shards(self) -> list[list[Triplet]]:
        """The run's pairs from video, without words, in a fixed random order, a part a round."""
        pairs, _ = mine(self.story)
        order = np.random.default_rng(self.story.seed).permutation(len(pairs))
        return [[pairs[n] for n in part] for part in np.array_split(order, self.amounts.rounds)]


def begin(run: Path, amounts: Amounts) -> Start:
    """Open a run of the main job that has got as far as `bootstrapped`."""
    story = start_of(run, amounts.validation)
    for name in ("judge_idm", START):
        story.vlm.attach_adapter(run / name / "adapter", name)
    test, validation = Cases(story, "test", amounts.cases), Cases(story, "validation", amounts.validation)
    learned = run / "idm_on_video"
    return Start(story, amounts, learned if learned.is_dir() else run / "idm", test, validation)


def study(run: Path, arms: Sequence[str], amounts: Amounts, output: Path) -> dict[str, list[dict[str, Any]]]:
    """All rounds of each arm; what an earlier call with the same amounts did is kept.

    Returns:
        'start', a list of one, and each arm -> a round each: `seconds` of training, `metrics` (M of `results.json`),
        `reward` of either role at the begin and end, and `by_case`, where `named` is whether the inverse model,
        greedily, names the true outcome of the case's true pair.
    """
    start = begin(run, amounts)
    found = {"start": [kept(output / "start", partial(_measured, start, run / START, start.idm))]}
    for name in arms:
        fdm, idm, rounds = run / START, start.idm, []
        for number in range(amounts.rounds):
            folder = output / name / f"round-{number + 1}"
            rounds.append(kept(folder, partial(_round, start, ARMS[name], number, fdm, idm, folder)))
            fdm, idm = folder / "fdm", folder / "idm" if ARMS[name].inverse != "stays" else idm
        found[name] = rounds
    return found


def _round(start: Start, arm: Arm, number: int, fdm: Path, idm: Path, folder: Path) -> dict[str, Any]:
    """Name a shard, improve the forward model by the inverse one, then that by the new forward model; and measure."""
    shard, story, began = start.shards[number], start.story, time.monotonic()
    steps = arm.steps(start.amounts)
    count = steps["fdm"] * PROMPTS["fdm"]
    rewarding = story.judge if arm.rewarded_by else _naming(story, idm, "namer")
    tried = label_pairs(rewarding, shard[:count])
    rewards, seed = grpo_rewards(story, START, rewarding), story.seed * 1000 + number
    reward = {"fdm": grpo_from(story, "fdm", fdm, tried, rewards, steps["fdm"], seed, folder / "fdm")}
    pairs = shard[-steps["idm"] * PROMPTS["idm"] :]
    if arm.inverse == "grpo":
        judging = load_rewards("fdm_likelihood", fdm=_foreseeing(story, folder / "fdm"), role="idm")
        reward["idm"] = grpo_from(story, "idm", idm, pairs, judging, steps["idm"], seed, folder / "idm")
    elif arm.inverse == "sft":
        _sft(start, idm, pairs, number, folder)
    seconds = time.monotonic() - began
    learned = idm if arm.inverse == "stays" else folder / "idm"
    return {"seconds": seconds, "reward": reward, **_measured(start, folder / "fdm", learned)}


def _naming(story: Story, run: Path, name: str) -> InverseDynamics:
    """A run's inverse model under a name, in the place of the one that had it."""
    attached(story, run, name)
    return InverseDynamics(story.vlm, name)


def _foreseeing(story: Story, run: Path) -> ForwardDynamics:
    attached(story, run, "foresees")
    return ForwardDynamics(story.vlm, "foresees")


def _sft(start: Start, idm: Path, pairs: Sequence[Triplet], number: int, folder: Path) -> None:
    """The inverse model goes on by SFT on labelled triplets and its own words, verified by the new forward model."""
    story = start.story
    namer, seed = _naming(story, idm, "namer"), story.seed * 1000 + number
    judge = _foreseeing(story, folder / "fdm")
    named = label_pairs(namer, pairs, temperature=1.0, num_samples=GROUP, seed=seed, fdm=judge)
    set_seed(seed)
    attached(story, idm, "learner")
    (folder / "idm").mkdir(exist_ok=True)
    rows = role_rows(story.vlm, "idm", [*story.labelled, *named])
    fit_adapter(story, str((folder / "idm").resolve()), "learner", "idm", rows, start.amounts.idm_steps * 4, SFT_RATE)


def _measured(start: Start, fdm: Path, idm: Path) -> dict[str, Any]:
    """M of the forward model, what the inverse one names, and both case by case."""
    story, test = start.story, start.test
    _foreseeing(story, fdm)
    metrics, each = of_system("foresees", test, start.validation)
    for cases in (test, start.validation):
        cases.forget("foresees")
    named = oracle.describe_pairs(_naming(story, idm, "namer"), test.world, test.tasks)[1]
    by_case = {**{key: short(values) for key, values in each.items()}, "named": short(named)}
    return {"metrics": {**metrics, "named": float(np.mean(named))}, "by_case": by_case}
