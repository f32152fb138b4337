"""What search at inference gains on test scenes: best of N by reward, a beam over steps, refinement at equal tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards import Batch, Reward, load_rewards, score
from rewards.ensemble import calibration
from rewards.mix import FITTED, MIX_FILE, mix_of
from rl import load_fdm, load_idm, rerank, rollout
from rl.errors import RewindError
from rl.evaluation.action_chains import sample_chains
from rl.evaluation.oracle import Task, judge_all, sample_tasks
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.running.files import read_json
from rl.search.best_of_n import expected_best
from rl.triplets import Candidate
from rl.world import World
from rl.worlds import load_split

logger = logging.getLogger("rl")
REWARDS = ("idm_likelihood", "idm_margin")
"""What every run is searched by; by its fitted mix too, where all have one."""
ENSEMBLE, ORACLE = "ensemble", "oracle"
CALIBRATION = ("calibration auc", "calibration wrong")
"""Of the ensemble's spread over all candidates of a run (`rewards.ensemble.calibration`), beside the cases."""
REFINED = (8, 16, 32)
"""Budgets, in candidates, at which refinement is compared with plain best of N."""
REFINEMENT_ROUNDS = 2
STEPS, BEAM, BEAM_CANDIDATES = 3, 4, 6
GREEDY_CANDIDATES = BEAM_CANDIDATES * (1 + (STEPS - 1) * BEAM) // STEPS
"""As many a step as make the greedy rollout cost what the beam does: N (1 + 2 * beam) candidates in three steps."""
AT_ONCE = 32
"""Scenes that are drawn and scored together."""

DIGITS = 6
"""Of a scene's expected success, as it is kept."""

Cases = dict[str, list[float]]
"""Name -> success of each test scene."""


@dataclass(frozen=True)
class Job:
    """A run folder of `demo.py` or `reproduce.py` and what is searched in it."""

    run: Path
    system: str
    world: str
    seed: int
    second_idms: tuple[Path, ...]
    idm: str = "idm"
    rewards: tuple[str, ...] = REWARDS


def jobs(runs: Sequence[Path], system: str, second_idms: Sequence[str] = (), idm: str = "idm") -> list[Job]:
    """What is to be studied, looked at before anything is loaded.

    Args:
        runs: folders with `idm` and the forward model's `system` in them; each `run.json` names world and seed.
        system: e.g. 'sft' or 'grpo'.
        idm: the inverse model in them, e.g. 'idm_on_video', with which the mix of 'grpo' was fitted.
        second_idms: further inverse models for the ensemble: the name of one in each run, e.g. 'judge_idm', or a path.

    Raises:
        RewindError: a folder without them, runs of several worlds, two of one seed, whose test scenes are the same.
    """
    found: list[Job] = []
    rewards = (*REWARDS, FITTED) if _all_fitted(runs, system, idm) else REWARDS
    for run in runs:
        if not all((run / name / "run.json").is_file() for name in ("", idm, system)):
            raise RewindError(f"{run} has no '{idm}' and '{system}': give a run folder of demo.py")
        told = read_json(run / "run.json")["config"]
        others = [run / name if (run / name).is_dir() else Path(name) for name in second_idms]
        for name, other in zip(second_idms, others, strict=True):
            if not other.is_dir():
                raise RewindError(f"--second_idm: there is no inverse model {name}, neither in {run} nor as a folder")
        found.append(Job(run, system, str(told["world"]), int(told["seed"]), tuple(others), idm, rewards))
    by_seed: dict[int, Job] = {}
    for job in found:
        same = by_seed.setdefault(job.seed, job)
        if same is not job:
            raise RewindError(f"{same.run} and {job.run} are both of seed {job.seed}, so of the same test scenes")
        if job.world != found[0].world:
            raise RewindError(f"{found[0].run} is of the world {found[0].world} and {job.run} of {job.world}")
    return found


def _all_fitted(runs: Sequence[Path], system: str, idm: str) -> bool:
    """Whether every run has a mix that was fitted for the system, by this inverse model; says so where it has not."""
    missing = [str(run) for run in runs if mix_of(run / system) is None]
    if missing and len(missing) < len(runs):
        logger.warning("no row for '%s': %s of %s has no mix", FITTED, system, ", ".join(missing))
    for run in runs if not missing else ():
        own = Path(str(read_json(run / system / MIX_FILE).get("idm", idm))).name
        if own != idm:
            raise RewindError(f"the mix of {run / system} was fitted with '{own}', not '{idm}': give --idm {own}")
    return not missing


def study(job: Job, scenes: int, candidates: int, parts: Sequence[str]) -> dict[str, Cases]:
    """Success on `scenes` test scenes of a run's world and seed, by kind of search.

    Args:
        job: of `jobs`.
        scenes: test scenes, and chains of three actions.
        candidates: the largest N of best of N; twice as many are drawn, so that its estimate rests on many subsets.
        parts: which of 'best_of_n', 'rollout' and 'refinement' are measured.
    """
    world, seed = load_split(job.world, "test"), job.seed
    fdm = load_fdm(job.run / job.system)
    idm = load_idm(job.run / job.idm, fdm.backbone)
    arguments: dict[str, Any] = {"idm_margin": {"rivals": "first"}, ENSEMBLE: {"others": job.second_idms}}
    names = [*job.rewards, *([ENSEMBLE] if job.second_idms else [])]
    rewards = {  # a mix is several rewards; its own arguments are in its file
        name: load_rewards(
            [name], idm, arguments={name: arguments[name]} if name in arguments else {}, run=str(job.run / job.system)
        )
        for name in names
    }
    known = {
        "best_of_n": lambda: best_of_n(fdm, rewards, world, scenes, candidates, seed),
        "rollout": lambda: rollouts(fdm, idm, job.rewards, world, scenes, seed),
        "refinement": lambda: refinement(fdm, idm, job.rewards, world, scenes, seed),
    }
    return {part: {name: np.round(values, DIGITS).tolist() for name, values in known[part]().items()} for part in parts}


def best_of_n(
    fdm: ForwardDynamics, rewards: dict[str, list[Reward]], world: World, scenes: int, largest: int, seed: int
) -> Cases:
    """Expected success of the best of N by each reward and by the oracle, 'REWARD N', from one set of samples.

    With an ensemble among the rewards also `CALIBRATION`, one number each: does its spread tell wrong rewards?
    """
    ensemble = rewards[ENSEMBLE][0].function if ENSEMBLE in rewards else None
    pooled: dict[str, list[Any]] = {ENSEMBLE: [], "spread": [], "right": []}
    tasks = sample_tasks(world, scenes, seed)
    numbers = [2**k for k in range(largest.bit_length()) if 2**k <= largest]
    found: Cases = {f"{name} {n}": [] for name in (*rewards, ORACLE) for n in numbers}
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        groups = fdm.sample([t.source for t in part], [t.action for t in part], 2 * largest, seed=seed)
        for task, group in zip(part, groups, strict=True):
            size = len(group)
            images = fdm.backbone.decode(np.stack([c.ids for c in group]))
            right = [float(j.success) for j in judge_all(world, [task] * size, images)]
            by: dict[str, Sequence[float | None]] = {ORACLE: right}
            for name, terms in rewards.items():
                by[name] = _totals(terms, task, _kind(world, task.action), group)
            if ensemble is not None:
                spread = Reward.of(ensemble.spread, "spread")  # type: ignore[attr-defined]
                pooled[ENSEMBLE] += by[ENSEMBLE]
                pooled["spread"] += _totals([spread], task, None, group)
                pooled["right"] += [value > 0 for value in right]
            for name, scores in by.items():
                for n in numbers:
                    found[f"{name} {n}"].append(expected_best(scores, right, n))
    if ensemble is not None:
        told = calibration(pooled[ENSEMBLE], pooled["spread"], pooled["right"])
        found |= {name: [told[name.split()[1]]] for name in CALIBRATION} if "auc" in told else {}
    return found


def _kind(world: World, action: str) -> str | None:
    """What a mix was fitted with, too: how much of a picture an action usually changes goes by its kind."""
    name: str | None = getattr(world, "family", lambda _: None)(action)
    return name


def _totals(rewards: list[Reward], case: Task, kind: str | None, group: list[Candidate]) -> list[float | None]:
    distinct = {candidate.ids.tobytes(): candidate for candidate in group}
    once = list(distinct.values())
    scored = score(rewards, Batch([case.action] * len(once), once, [case.source] * len(once), task=[kind] * len(once)))
    totals = {key: one.total for key, one in zip(distinct, scored, strict=True)}
    return [totals[candidate.ids.tobytes()] for candidate in group]


def rollouts(
    fdm: ForwardDynamics, idm: InverseDynamics, rewards: Sequence[str], world: World, scenes: int, seed: int
) -> Cases:
    """Success of the last picture of three steps: sampled, best of N at each step, and a beam of equal cost."""
    chains = sample_chains(world, scenes, STEPS, seed)
    kinds: dict[str, dict[str, Any]] = {"one sample a step": {"num_candidates": 1}}
    for reward in rewards:
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
        kinds_of = [_kind(world, action) for action in chain.actions]
        for name, settings in kinds.items():
            end = rollout(fdm, chain.source, chain.actions, idm, **settings, task=kinds_of, seed=seed)[-1]
            found[name].append(float(chain.succeeded(world, STEPS - 1, np.asarray(end.image))))
    return found


def refinement(
    fdm: ForwardDynamics, idm: InverseDynamics, rewards: Sequence[str], world: World, scenes: int, seed: int
) -> Cases:
    """Success of plain best of N and of half the candidates refined, at most as many sampled tokens in each, and how
    many whole pictures those tokens would have been.
    """
    tasks = sample_tasks(world, scenes, seed)
    found: Cases = {}
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        sources, actions = [t.source for t in part], [t.action for t in part]
        kinds = [_kind(world, action) for action in actions]
        for reward in rewards:
            for n in REFINED:
                for kind, rounds in (("plain", 0), ("refined", REFINEMENT_ROUNDS)):
                    best = rerank(fdm, idm, sources, actions, n, [reward], refine=rounds, task=kinds, seed=seed)
                    ids = np.stack([one.best.candidate.ids for one in best])
                    judged = judge_all(world, part, fdm.backbone.decode(ids))
                    key = f"{reward}, {kind} {n}"
                    found.setdefault(key, []).extend(float(j.success) for j in judged)
                    cost = [one.sampled_tokens / ids.shape[1] for one in best]
                    found.setdefault(f"{key}: cost", []).extend(cost)
    return found
