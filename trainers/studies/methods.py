"""Ways to improve a forward model by rewards, from the same start and with the same number of sampled candidates.

Best-of-N training, DPO and forms of GRPO, each on the `bootstrapped` that runs of the main job left, measured on the
same test cases and noise; every figure is a difference to the start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from rewards import Reward
from rl.errors import RewindError
from rl.evaluation.action_chains import sample_chains
from rl.models.roles import InverseDynamics
from rl.triplets import Triplet
from trainers.best_of_n.keep import Keep, keep_best, kept_rows
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.candidates import scored_groups
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile, show_quietly
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import REFERENCE, Pairing, WorldModelDPOTrainer, preference_rows
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.arguments import RoleConfig
from trainers.sft.trainer import RoleSFTTrainer
from trainers.studies.demo.improvement import grpo_prompts
from trainers.studies.demo.mixes import grpo_rewards
from trainers.studies.demo.results import Cases, of_system
from trainers.studies.demo.story import Story
from trainers.studies.grpo_settings import STEPS, chain_success, start_of, world_chains
from trainers.studies.shared import CONSTANT, check_runs, kept

logger = logging.getLogger("rl")
GROUP, PROMPTS_A_STEP = 8, 16
"""As in `make reproduce`; chains of three steps are as many predictions, rounded to whole groups."""
REWARDED = "by `idm_likelihood`, `keep_unchanged` and `fdm_confidence` of the start at the main job's weights"
"""Written down with a study, so that one that was begun under another reward is not gone on with."""
MIN_GAP = 0.5
"""DPO's, between the best and the worst of a group, as in `configs/dpo_tabletop.yaml`."""
START = "bootstrapped"
JUDGED = 100
"""Test cases on which the judge IDM reads a candidate."""
MEASURES = {
    "success": ("success, T 1", "points", 100.0),
    "success_at_best_temperature": ("success, best T", "points", 100.0),
    "judge": ("judge", "of 10", 1.0),
    "minimality": ("minimality", "of 10", 1.0),
    "copy_rate": ("copies", "points", 100.0),
    "judge_idm": ("judge IDM", "nats a token", 1.0),
    "three_steps": ("success after 3 steps", "points", 100.0),
}


@dataclass(frozen=True)
class Amounts:
    """How much each method may draw and how it is measured.

    `candidates` are sampled pictures, `cases` and `validation` cases of the test and validation splits.
    """

    candidates: int = 7680
    cases: int = 400
    validation: int = 120

    def __post_init__(self) -> None:
        if self.candidates < GROUP * PROMPTS_A_STEP or min(self.cases, self.validation) < 1:
            raise RewindError(f"give at least {GROUP * PROMPTS_A_STEP} candidates, and cases to measure on")


def best_of_n(story: Story, amounts: Amounts, output: Path) -> None:
    """SFT on the best of each group that leads by 0.1."""
    keep = Keep(GROUP, min_lead=0.1)
    kept, _ = keep_best(story.vlm, _groups(story, amounts), keep)
    config = RoleConfig(
        **_usual(output, story.seed),
        max_steps=max(1, amounts.candidates // 64),
        learning_rate=story.budget.best_of_n_learning_rate,
        lr_scheduler_type="linear",
        per_device_train_batch_size=story.budget.fdm_batch_size,
    )
    _train(RoleSFTTrainer(story.vlm, "fdm", config, kept_rows(story.vlm, kept), callbacks=[_log(output)]))


def dpo(story: Story, amounts: Amounts, output: Path) -> None:
    """The best of each group against its worst, with TRL's SFT term on the best; settings of `configs/dpo_tabletop`."""
    pairing = Pairing(GROUP, min_gap=MIN_GAP)
    pairs = [p for triplet, group in _groups(story, amounts) if (p := pairing.pair(triplet, group))]
    config = RewindDPOConfig(
        **_usual(output, story.seed),
        max_steps=max(1, amounts.candidates // 128),
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        per_device_train_batch_size=32,
        beta=3.0,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 1.0],
    )
    _train(WorldModelDPOTrainer(story.vlm, config, preference_rows(story.vlm, pairs), callbacks=[_log(output)]))
    story.vlm.model.delete_adapter(REFERENCE)  # type: ignore[operator]


def grpo(
    story: Story, amounts: Amounts, output: Path, prompts: Sequence[Triplet] | None = None, **settings: Any
) -> None:
    """GRPO with the main job's settings but for its `importance_advantages`; `settings` are those of
    `WorldModelGRPOTrainer`.
    """
    group = GROUP * settings.get("rollout_steps", 1)  # predictions of a group
    batch = GROUP * PROMPTS_A_STEP // group * group
    config = RewindGRPOConfig(
        **_usual(output, story.seed),
        max_steps=amounts.candidates // batch,
        learning_rate=story.budget.rl_learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=2,
        num_generations=GROUP,
        scale_rewards="none" if group > GROUP else "group",  # of several steps each is compared within itself
        per_device_train_batch_size=batch,
    )
    tried, log = prompts or _prompts(story, amounts), [_log(output)]
    _train(WorldModelGRPOTrainer(story.vlm, tried, _rewards(story), config, callbacks=log, **settings))


def grpo_importance(story: Story, amounts: Amounts, output: Path) -> None:
    """GRPO whose advantages weigh tokens by how often the group changes them."""
    grpo(story, amounts, output, importance_advantages="group")


def grpo_trajectory(story: Story, amounts: Amounts, output: Path) -> None:
    """GRPO on chains of three actions, every prediction credited with the mean reward of its trajectory."""
    chains = world_chains(story.splits["train"], story.budget.labelled // STEPS, story.seed)
    grpo(story, amounts, output, chains, rollout_steps=STEPS, rollout_credit="trajectory")


METHODS: dict[str, tuple[str, Callable[[Story, Amounts, Path], None]]] = {
    "best_of_n": ("best-of-N training", best_of_n),
    "dpo": ("DPO", dpo),
    "grpo": ("GRPO", grpo),
    "grpo_importance": ("GRPO, advantages weighted by change", grpo_importance),
    "grpo_trajectory": ("GRPO, trajectory rewards over 3 steps", grpo_trajectory),
}
"""Name -> what it is called in the table, and what trains the adapter `default` of a story."""


def _usual(output: Path, seed: int) -> dict[str, Any]:
    quiet = {"save_strategy": "no", "activation_checkpointing": False, "logging_steps": 1, "report_to": "none"}
    return {"output_dir": str(output), "seed": seed, **quiet}


def _log(output: Path) -> MetricsFile:
    return MetricsFile(output / "metrics.jsonl")


def _train(trainer: Any) -> None:
    show_quietly(trainer)
    fit(trainer, Path(trainer.args.output_dir), resume=False, batch=CONSTANT)


def _prompts(story: Story, amounts: Amounts) -> list[Triplet]:
    """The same sources and actions for every method but that of several steps, each tried once."""
    return grpo_prompts(story)[: amounts.candidates // GROUP]


def _groups(story: Story, amounts: Amounts) -> Any:
    """Scored groups, drawn from the start."""
    return scored_groups(story.fdm(START), _rewards(story), _prompts(story, amounts), GROUP, seed=story.seed)


def _rewards(story: Story) -> list[Reward]:
    """What the main job's GRPO is rewarded by: the terms of a mix at the budget's weights, the start's likelihood among
    them, by the inverse model that has learned from video if the run has one.
    """
    return grpo_rewards(story, START, InverseDynamics(story.vlm, _verifier(story.output)))


def _verifier(run: Path) -> str:
    return "idm_on_video" if (run / "idm_on_video").is_dir() else "idm"


def check(runs: Sequence[Path], asked: Sequence[str], known: Iterable[str] = METHODS, kind: str = "method") -> None:
    """Look at the input before any work.

    Raises:
        RewindError: a folder without what is needed, two of one name, something asked for that is not known.
    """
    if unknown := sorted(set(asked) - set(known)):
        raise RewindError(f"no {kind} {', '.join(unknown)}: there are {', '.join(known)}")
    check_runs(runs, ("idm", "judge_idm", START))


def study(run: Path, methods: Sequence[str], amounts: Amounts, output: Path) -> dict[str, Any]:
    """Train by each method from `run/bootstrapped` and measure; what an earlier call with the same amounts did is kept.

    Args:
        run: a run folder of `demo.py` or `reproduce.py` that has got as far as `bootstrapped`.
        methods: keys of `METHODS`.
        amounts: the same for all.
        output: gets a folder a method, with its adapter, `metrics.jsonl` and `measured.json`.

    Returns:
        'start' and each method -> `seconds` of training, `metrics` (M of `results.json`), `by_case`.
    """
    story = start_of(run, amounts.validation)
    for name in {"judge_idm", _verifier(run)} - {"idm"}:  # that one is on the backbone
        story.vlm.attach_adapter(run / name / "adapter", name)
    story.vlm.attach_adapter(run / START / "adapter", START)
    test, validation = Cases(story, "test", amounts.cases), Cases(story, "validation", amounts.validation)
    measured = partial(_measured, test=test, validation=validation)
    found = {"start": kept(output / "start", lambda: {"seconds": 0.0, **measured(START)})}
    for name in methods:

        def work(name: str = name, folder: Path = output / name) -> dict[str, Any]:
            story.vlm.attach_adapter(run / START / "adapter", "default")
            only_policy_trains(story.vlm)
            set_seed(story.seed)
            began = time.monotonic()
            METHODS[name][1](story, amounts, folder)
            seconds = time.monotonic() - began
            save_adapter(story.vlm, folder, role="fdm")
            story.vlm.model.delete_adapter("default")  # type: ignore[operator]
            story.vlm.attach_adapter(folder / "adapter", f"after_{name}")
            return {"seconds": seconds, **measured(f"after_{name}")}

        found[name] = kept(output / name, work)
    return found


def _measured(name: str, test: Cases, validation: Cases) -> dict[str, Any]:
    """M of a system and, case by case, what differences are taken of."""
    metrics, each = of_system(name, test, validation)
    drawn = [group[0] for group in test.draw(name)[:JUDGED]]
    count, story = len(drawn), test.story
    said = story.judge.score(test.sources[:count], [np.asarray(c.image) for c in drawn], test.actions[:count])
    world = test.world
    tested = sample_chains(world, max(1, len(test.tasks) // 4), STEPS, story.seed)
    steps = chain_success(story.fdm(name), world, tested, story.seed)[f"after {STEPS}"]
    values = {**each, "judge_idm": said, "three_steps": steps}
    by_case = {key: np.asarray(one).tolist() for key, one in values.items()}
    return {"metrics": metrics, "by_case": by_case}
