"""Likelihood probes (arXiv 2506.06006): how often is the truth likelier than a fake?

Scored by the mean log-probability a token of the action given both pictures (IDM) or of the target's image tokens given
source and action (FDM). About one half means that the model cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rl.errors import RewindError
from rl.evaluation.oracle import READ_AT_ONCE, Task
from rl.world import World

TRIES = 1000
"""Draws for a fake that does not lead to the true outcome before we give up."""

Score = Callable[[list[np.ndarray], list[np.ndarray], list[str]], list[float]]


def fakes(world: World, tasks: Sequence[Task], seed: int = 0) -> dict[str, list[tuple[np.ndarray, str, np.ndarray]]]:
    """For each kind of fake a (source, action, target) a task.

    `random_action` comes from another task, `counterfactual_action` is another action that is possible on the same
    scene; neither leads to the true outcome. `random_target` is another task's target. A kind of which some task has
    none, as in a world with one action a scene, is left out.

    Raises:
        RewindError: no other task leads elsewhere.
    """
    rng = np.random.default_rng(seed)
    random_action, counterfactual, random_target = [], [], []
    for task in tasks:
        others = (tasks[int(rng.integers(len(tasks)))] for _ in range(TRIES))
        leads_elsewhere = (
            o for o in others if o is not task and task.outcome not in world.outcomes(task.scene, o.action)
        )
        other = next(leads_elsewhere, None)
        if other is None:
            raise RewindError(f"{TRIES} draws gave no other test case that leads elsewhere: use more test cases")
        random_action.append((task.source, other.action, task.target))
        random_target.append((task.source, task.action, other.target))
        actions = (world.sample_action(task.scene, rng) for _ in range(TRIES))
        action = next((a for a in actions if task.outcome not in world.outcomes(task.scene, a)), None)
        if action is not None:
            counterfactual.append((task.source, action, task.target))
    found = {
        "random_action": random_action,
        "counterfactual_action": counterfactual,
        "random_target": random_target,
        "copy": [(task.source, task.action, task.source) for task in tasks],
        "swapped": [(task.target, task.action, task.source) for task in tasks],
    }
    return {kind: rows for kind, rows in found.items() if len(rows) == len(tasks)}


def prefers_truth(score: Score, world: World, tasks: Sequence[Task], seed: int = 0) -> dict[str, dict[str, float]]:
    """Share of tasks in which the truth scores above the fake, by kind of fake, for 'all' and for each task family.

    `score(sources, targets, actions)` is the `score` method of an `InverseDynamics` or a `ForwardDynamics`.
    """

    def scores(rows: Sequence[tuple[np.ndarray, str, np.ndarray]]) -> np.ndarray:
        found = list[float]()
        for start in range(0, len(rows), READ_AT_ONCE):
            sources, actions, targets = zip(*rows[start : start + READ_AT_ONCE], strict=True)
            found += score(list(sources), list(targets), list(actions))
        return np.array(found)

    truth = scores([(task.source, task.action, task.target) for task in tasks])
    wins = {kind: truth > scores(rows) for kind, rows in fakes(world, tasks, seed).items()}
    found = {"all": {kind: float(won.mean()) for kind, won in wins.items()}}
    family = getattr(world, "family", None)
    if family is None:
        return found
    families = np.array([family(task.action) for task in tasks])
    for name in sorted(set(families)):
        found[name] = {kind: float(won[families == name].mean()) for kind, won in wins.items()}
    return found
