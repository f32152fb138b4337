"""GRPO with other settings from the start that a run of the main job left, compared with it on validation cases.

What the demo cannot show in its minutes: success against sampled candidates for one setting after another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from rewards import Reward, load_rewards
from rewards.keep_unchanged import KeepUnchanged
from rl.errors import RewindError
from rl.evaluation.action_chains import Chain, sample_chains
from rl.evaluation.intervals import paired_difference
from rl.evaluation.oracle import sample_tasks, triplets_of
from rl.models.bases import base_of_adapter
from rl.models.inputs import token_ids
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.report import markdown
from rl.running.files import read_json
from rl.triplets import Triplet
from rl.world import World
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile, show_quietly
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.studies.demo.improvement import grpo_prompts
from trainers.studies.demo.job import splits_of
from trainers.studies.demo.labels import labelled_by_idm
from trainers.studies.demo.results import Cases
from trainers.studies.demo.story import Budget, Story

logger = logging.getLogger("rl")
TEMPERATURES = (1.0, 0.5, 0.3, 0.0)
OURS = ("dead_group_retries", "spread_floor", "importance_advantages", "guidance", "rollout_steps", "rollout_credit")
"""Settings of `WorldModelGRPOTrainer` beside TRL's."""
RIVALS = "first"
"""Of `idm_margin`: the tabletop's own words are in the smaller table, and the committed figures were made with it."""
KEEP_WEIGHT = 1.0
"""Weight of `keep_unchanged` beside an `idm_margin` of 1."""
SAMPLES = {1.0: 4}
"""Samples a case at a temperature; one where it is not named."""
STEPS = 3
"""Actions of a chain of the world."""


def rewards_of(story: Story, background: float | None = None, idm: InverseDynamics | None = None) -> list[Reward]:
    """The studies' reward, `idm_margin` and `keep_unchanged` (the main job fits a mix): as much change as is usual in
    labelled data of the task is free. `idm` is another inverse model than the one that labelled.

    The usual amount is the median. Most candidates that carry out the action and still are wrong change one token too
    many, which a higher quantile lets pass and no inverse model minds: `docs/findings/grpo.md` has the figures.
    """
    vlm = story.vlm
    sources = token_ids(vlm, [t.source for t in story.labelled])
    targets = token_ids(vlm, [t.target for t in story.labelled if t.target is not None])
    by_task: dict[str, list[int]] = {}
    for triplet, a, b in zip(story.labelled, sources, targets, strict=True):
        by_task.setdefault(triplet.task or "", []).append(sum(x != y for x, y in zip(a, b, strict=True)))
    free = {task: float(np.median(counts)) for task, counts in by_task.items()}
    keep = Reward.of(KeepUnchanged(free, max(free.values())), "keep_unchanged", KEEP_WEIGHT)
    actions = [t.action for t in story.labelled]
    arguments = {"idm_margin": {"background": background, "rivals": RIVALS}}
    return [*load_rewards(["idm_margin=1.0"], idm or story.idm, actions, arguments=arguments), keep]


def check(run: Path, settings: dict[str, Any], cases: int) -> None:
    """Look at what `study` is given, before a folder is claimed for it.

    Raises:
        RewindError: a folder without the adapters, a setting that there is not or that TRL refuses, no case.
    """
    if not all((run / name / "run.json").is_file() for name in ("", "idm", "bootstrapped")):
        raise RewindError(f"{run} has no 'idm' and 'bootstrapped': give a run folder of demo.py")
    if cases < 1:
        raise RewindError(f"--cases must be at least 1, not {cases}")
    unknown = set(settings) - set(OURS) - set(RewindGRPOConfig.__dataclass_fields__)
    if unknown:
        raise RewindError(f"GRPOConfig has no {', '.join(sorted(unknown))}")
    budget = Budget(**read_json(run / "run.json")["config"]["budget"])
    try:
        _config(run, run, _usual(budget, settings), settings)
    except (TypeError, ValueError) as error:
        raise RewindError(f"GRPOConfig cannot have {settings}: {error}") from error


def study(
    run: Path,
    output: Path,
    settings: dict[str, Any],
    *,
    cases: int,
    keep: float,
    floor: float,
    background: float | None = None,
    chains: int = 0,
) -> dict[str, Any]:
    """Train with `settings` of TRL's `GRPOConfig` from `run/bootstrapped`, rewarded by `run/idm`.

    Args:
        run: a run folder of `demo.py` or `reproduce.py` that has got as far as `bootstrapped`.
        output: a claimed folder for the adapter, `metrics.jsonl` and `results.json`.
        settings: what to change of the demo's settings, e.g. `learning_rate`, `num_iterations`, `max_steps`, or of
            `OURS`.
        cases: validation cases; a sample at each temperature, four at temperature 1.
        keep: weight of `keep_unchanged` beside `idm_margin` of weight 1.
        floor, background: of `idm_margin`.
        chains: above 0, what is tried is chains of three actions of the training split, as many triplets as are
            labelled, in place of the demo's prompts, whether rollouts have one step or several; and success after one
            and after three steps is measured on so many chains of the validation split.

    Returns:
        Seconds, candidates, the curve of the reward, and for each temperature success and minimality before and after
        with their paired difference and its 95 % interval; the same of success on chains, `after 1` and `after 3`.

    Raises:
        RewindError: what `check` finds.
    """
    check(run, settings, cases)
    story = start_of(run, cases)
    vlm, seed, budget = story.vlm, story.seed, story.budget
    for name in ("bootstrapped", "default"):
        vlm.attach_adapter(run / "bootstrapped" / "adapter", name)
    margin, unchanged = rewards_of(story, background)
    margin.function.floor = floor  # type: ignore[attr-defined]
    rewards = [margin, replace(unchanged, weight=keep)]
    usual, ours = _usual(budget, settings), {name: value for name, value in settings.items() if name in OURS}
    set_seed(seed)
    config = _config(run, output, usual, settings)
    test = Cases(story, "validation", cases)
    before = _measured(test, "bootstrapped")
    tested = sample_chains(story.splits["validation"], chains, STEPS, seed)
    chains_before = chain_success(story.fdm("bootstrapped"), story.splits["validation"], tested, seed)
    tried = world_chains(story.splits["train"], budget.labelled // STEPS, seed) if chains else grpo_prompts(story)
    only_policy_trains(vlm)
    trainer = WorldModelGRPOTrainer(
        vlm, tried, rewards, config, callbacks=[MetricsFile(output / "metrics.jsonl")], **ours
    )
    show_quietly(trainer)
    began = time.monotonic()
    fit(trainer, output, resume=False, batch="per_device_train_batch_size in --settings")
    seconds = time.monotonic() - began
    save_adapter(vlm, output, role="fdm")
    after = _measured(test, "grpo")
    chains_after = chain_success(story.fdm("grpo"), story.splits["validation"], tested, seed)
    rewarded = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    generations = trainer.state.global_step / (config.num_iterations * (config.steps_per_generation or 1))
    return {
        "settings": {**usual, **settings, "keep_unchanged": keep, "floor": floor, "background": background},
        "seconds": seconds,
        "candidates": round(generations * config.generation_batch_size),
        "reward": [float(np.mean(part)) for part in np.array_split(rewarded, min(10, len(rewarded)))],
        **{str(t): _difference(before[t], after[t]) for t in TEMPERATURES},
        **({"chains": _difference(chains_before, chains_after)} if chains else {}),
    }


def start_of(run: Path, validation: int) -> Story:
    """The story that a run of the main job has told as far as `bootstrapped`, with its IDM on the backbone."""
    told = read_json(run / "run.json")["config"]
    budget, splits = replace(Budget(**told["budget"]), validation=validation), splits_of(told["world"])
    vlm = load_base(base_of_adapter(run / "bootstrapped" / "adapter"))
    story = Story(splits["train"], splits, vlm, run, told["seed"], budget)
    story.labelled = triplets_of(splits["train"], sample_tasks(splits["train"], budget.labelled, story.seed), "world")
    story.synthetic, story.tried = labelled_by_idm(run)
    vlm.attach_adapter(run / "idm" / "adapter", "idm")
    return story


def world_chains(world: World, count: int, seed: int) -> list[Triplet]:
    """The triplets of `count` chains of the world, each one's one after the other."""
    rng = np.random.default_rng((seed, 2))
    return [t for chain in sample_chains(world, count, STEPS, (seed, 2)) for t in chain.triplets(world, rng)]


def chain_success(fdm: ForwardDynamics, world: World, chains: Sequence[Chain], seed: int) -> dict[str, np.ndarray]:
    """Success of the picture after one step and after all, without search at temperature 1, a number a chain."""
    found: dict[str, np.ndarray] = {f"after {step}": np.zeros(len(chains)) for step in (1, STEPS)}
    for sample in range(SAMPLES[1.0]) if chains else ():
        ends: list[Any] = [chain.source for chain in chains]
        for step in range(STEPS):
            actions = [chain.actions[step] for chain in chains]
            ends = [one for (one,) in fdm.sample(ends, actions, 1, seed=seed, step=step, first=sample)]
            if f"after {step + 1}" in found:
                pairs = zip(chains, ends, strict=True)
                right = [chain.succeeded(world, step, np.asarray(end)) for chain, end in pairs]
                found[f"after {step + 1}"] += np.array(right) / SAMPLES[1.0]
    return found


def _usual(budget: Budget, settings: dict[str, Any]) -> dict[str, Any]:
    """The demo's settings of GRPO; larger groups among `settings` get about as many candidates."""
    group = settings.get("num_generations", budget.group_size) * settings.get("rollout_steps", 1)
    return {
        "max_steps": 30,
        "learning_rate": budget.rl_learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "num_generations": budget.group_size,
        "per_device_train_batch_size": max(1, budget.grpo_prompts * budget.group_size // group) * group,
    }


def _config(run: Path, output: Path, usual: dict[str, Any], settings: dict[str, Any]) -> RewindGRPOConfig:
    told = {name: value for name, value in settings.items() if name not in OURS}
    fixed = {"output_dir": str(output), "save_strategy": "no", "activation_checkpointing": False, "logging_steps": 1}
    seed = read_json(run / "run.json")["config"]["seed"]
    return RewindGRPOConfig(**{**usual, **told, **fixed}, seed=seed, report_to="none")


def _measured(cases: Cases, name: str) -> dict[float, dict[str, np.ndarray]]:
    """Mean of each measure by case, at each temperature."""
    found = {}
    for temperature in TEMPERATURES:
        judged = cases.judge(cases.draw(name, SAMPLES.get(temperature, 1), temperature))
        found[temperature] = {key: judged[key].mean(1) for key in ("success", "minimality")}
    return found


def _difference(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        key: {
            "before": float(before[key].mean()),
            "after": float(after[key].mean()),
            "difference": list(paired_difference(after[key], before[key])),
        }
        for key in before
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a study, success after minus before at each temperature."""
    steps = [f"after {step}" for step in (1, STEPS) if any("chains" in one for one in found)]
    head = ["settings", "candidates", "seconds", *(f"T {t}" for t in TEMPERATURES), "minimality, T 1.0"]
    head += [f"chains {name}" for name in steps]
    rows = []
    for one in found:
        cells = [", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in one["settings"].items())]
        cells += [str(one["candidates"]), f"{one['seconds']:.0f}"]
        cells += [_points(one[str(t)]["success"]) for t in TEMPERATURES]
        cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(*one["1.0"]["minimality"]["difference"]))
        cells += [_points(one["chains"][name]) if "chains" in one else "" for name in steps]
        rows.append(cells)
    return markdown.table(head, rows)


def _points(measured: dict[str, Any]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in measured["difference"]))
