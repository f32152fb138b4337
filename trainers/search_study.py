"""What search at inference gains on test scenes: best of N by reward, a beam over steps, refinement at equal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards import Batch, Reward, load_rewards, score
from rl import load_fdm, load_idm, rerank, rollout
from rl.errors import RewindError
from rl.evaluation.chains import sample_chains
from rl.evaluation.intervals import mean_of_runs
from rl.evaluation.oracle import judge_all, sample_tasks
from rl.models.bases import read_json
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.search.best_of_n import expected_best
from rl.triplets import Candidate
from rl.world import World
from rl.worlds import load_split

REWARDS = ("idm_likelihood", "idm_margin")
HEADROOM_AT = 8
REFINED = (8, 16, 32)
"""Budgets, in candidates, at which refinement is compared with plain best of N."""
REFINEMENT_ROUNDS = 2
STEPS, BEAM, BEAM_CANDIDATES = 3, 4, 6
GREEDY_CANDIDATES = BEAM_CANDIDATES * (1 + (STEPS - 1) * BEAM) // STEPS
"""As many a step as make the greedy rollout cost what the beam does: N (1 + 2 * beam) candidates in three steps."""
AT_ONCE = 32
"""Scenes that are drawn and scored together."""

Cases = dict[str, list[float]]
"""Name -> success of each test scene."""


def study(run: Path, system: str, scenes: int, candidates: int, parts: Sequence[str]) -> dict[str, Cases]:
    """Success on `scenes` test scenes of a run folder of `demo.py` or `reproduce.py`, by kind of search.

    Args:
        run: the folder, with `idm` and the forward model's `system` in it; its `run.json` names world and seed.
        system: e.g. 'sft' or 'grpo'.
        scenes: test scenes, and chains of three actions.
        candidates: the largest N of best of N; twice as many are drawn, so that its estimate rests on many subsets.
        parts: which of 'best_of_n', 'rollout' and 'refinement' are measured.

    Raises:
        RewindError: a folder without them.
    """
    if not all((run / name / "run.json").is_file() for name in ("", "idm", system)):
        raise RewindError(f"{run} has no 'idm' and '{system}': give a run folder of demo.py")
    told = read_json(run / "run.json")["config"]
    world, seed = load_split(told["world"], "test"), int(told["seed"])
    fdm = load_fdm(run / system)
    idm = load_idm(run / "idm", fdm.backbone)
    known = {
        "best_of_n": lambda: best_of_n(fdm, idm, world, scenes, candidates, seed),
        "rollout": lambda: rollouts(fdm, idm, world, scenes, seed),
        "refinement": lambda: refinement(fdm, idm, world, scenes, seed),
    }
    return {part: known[part]() for part in parts}


def best_of_n(fdm: ForwardDynamics, idm: InverseDynamics, world: World, scenes: int, largest: int, seed: int) -> Cases:
    """Expected success of the best of N by each reward and by the oracle, 'REWARD N', from one set of samples."""
    tasks = sample_tasks(world, scenes, seed)
    rewards = [*load_rewards(REWARDS, idm)]
    numbers = [2**k for k in range(largest.bit_length()) if 2**k <= largest]
    found: Cases = {f"{name} {n}": [] for name in (*REWARDS, "oracle") for n in numbers}
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        groups = fdm.sample([t.source for t in part], [t.action for t in part], 2 * largest, seed=seed)
        for task, group in zip(part, groups, strict=True):
            size = len(group)
            images = fdm.backbone.decode(np.stack([c.ids for c in group]))
            right = [float(j.success) for j in judge_all(world, [task] * size, images)]
            by: dict[str, Sequence[float | None]] = {"oracle": right}
            for reward in rewards:
                by[reward.name] = _totals([reward], task.source, task.action, group)
            for name, scores in by.items():
                for n in numbers:
                    found[f"{name} {n}"].append(expected_best(scores, right, n))
    return found


def _totals(rewards: list[Reward], source: np.ndarray, action: str, group: list[Candidate]) -> list[float | None]:
    distinct = {candidate.ids.tobytes(): candidate for candidate in group}
    once = list(distinct.values())
    scored = score(rewards, Batch([action] * len(once), once, [source] * len(once)))
    totals = {key: one.total for key, one in zip(distinct, scored, strict=True)}
    return [totals[candidate.ids.tobytes()] for candidate in group]


def rollouts(fdm: ForwardDynamics, idm: InverseDynamics, world: World, scenes: int, seed: int) -> Cases:
    """Success of the last picture of three steps: sampled, best of N at each step, and a beam of equal cost."""
    chains = sample_chains(world, scenes, STEPS, seed)
    kinds: dict[str, dict[str, Any]] = {"one sample a step": {"num_candidates": 1}}
    for reward in REWARDS:
        kinds[f"{reward}, best of {GREEDY_CANDIDATES} a step"] = {
            "num_candidates": GREEDY_CANDIDATES,
            "rewards": [reward],
        }
        kinds[f"{reward}, beam of {BEAM}, {BEAM_CANDIDATES} each"] = {
            "num_candidates": BEAM_CANDIDATES,
            "rewards": [reward],
            "beam": BEAM,
        }
    found: Cases = {name: [] for name in kinds}
    for chain in chains:
        for name, settings in kinds.items():
            end = rollout(fdm, chain.source, chain.actions, idm, **settings, seed=seed)[-1]
            found[name].append(float(chain.succeeded(world, STEPS - 1, np.asarray(end.image))))
    return found


def refinement(fdm: ForwardDynamics, idm: InverseDynamics, world: World, scenes: int, seed: int) -> Cases:
    """Success of plain best of N and of half the candidates refined, at most as many sampled tokens in each, and how
    many whole pictures those tokens would have been.
    """
    tasks = sample_tasks(world, scenes, seed)
    found: Cases = {}
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        sources, actions = [t.source for t in part], [t.action for t in part]
        for reward in REWARDS:
            for n in REFINED:
                for kind, rounds in (("plain", 0), ("refined", REFINEMENT_ROUNDS)):
                    best = rerank(fdm, idm, sources, actions, n, [reward], refine=rounds, seed=seed)
                    ids = np.stack([one.best.candidate.ids for one in best])
                    judged = judge_all(world, part, fdm.backbone.decode(ids))
                    key = f"{reward}, {kind} {n}"
                    found.setdefault(key, []).extend(float(j.success) for j in judged)
                    cost = [one.sampled_tokens / ids.shape[1] for one in best]
                    found.setdefault(f"{key}: cost", []).extend(cost)
    return found


Runs = Sequence[dict[str, Cases]]


def table(runs: Runs) -> str:
    """Markdown of one or several runs: means over runs of means over scenes, differences with 95 % intervals."""
    written = {"best_of_n": _table_of_best, "rollout": _table_of_rollouts, "refinement": _table_of_refinement}
    return "\n\n".join("\n".join(write(runs)) for part, write in written.items() if part in runs[0])


def _mean(runs: Runs, part: str, name: str) -> float:
    return float(np.mean([np.mean(run[part][name]) for run in runs]))


def _difference(runs: Runs, part: str, ours: str, theirs: str) -> str:
    values = [np.subtract(run[part][ours], run[part][theirs]) for run in runs]
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in mean_of_runs(values)))


def _table_of_best(runs: Runs) -> list[str]:
    numbers = [int(name.split()[1]) for name in runs[0]["best_of_n"] if name.startswith("oracle ")]
    rates = {name: [_mean(runs, "best_of_n", f"{name} {n}") for n in numbers] for name in (*REWARDS, "oracle")}
    lines = ["| best of N by | " + " | ".join(f"N {n}" for n in numbers) + f" | head-room used at N {HEADROOM_AT} |"]
    lines.append("|" + " --- |" * (len(numbers) + 2))
    for name, found in rates.items():
        used = ""
        if HEADROOM_AT in numbers:
            at = numbers.index(HEADROOM_AT)
            room = rates["oracle"][at] - rates["oracle"][0]
            used = f"{100 * (found[at] - found[0]) / room:.0f} %" if room else "there is none"
        lines.append(f"| {name} | " + " | ".join(f"{100 * x:.1f}" for x in found) + f" | {used} |")
    return lines


def _table_of_rollouts(runs: Runs) -> list[str]:
    lines, names = (
        [f"| {STEPS} steps | success % | beam minus greedy |", "| --- | --- | --- |"],
        list(runs[0]["rollout"]),
    )
    for number, name in enumerate(names):
        gained = _difference(runs, "rollout", name, names[number - 1]) if "beam" in name else ""
        lines.append(f"| {name} | {100 * _mean(runs, 'rollout', name):.1f} | {gained} |")
    return lines


def _table_of_refinement(runs: Runs) -> list[str]:
    lines = ["| at the cost of N | plain % | refined % | refined minus plain | cost used |", "|" + " --- |" * 5]
    for name in runs[0]["refinement"]:
        if "plain" not in name or name.endswith("cost"):
            continue
        refined = name.replace("plain", "refined")
        rates = [f"{100 * _mean(runs, 'refinement', key):.1f}" for key in (name, refined)]
        gained, cost = _difference(runs, "refinement", refined, name), _mean(runs, "refinement", f"{refined}: cost")
        lines.append(f"| {name.replace('plain', 'N')} | {rates[0]} | {rates[1]} | {gained} | {cost:.1f} |")
    return lines
