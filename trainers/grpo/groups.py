"""A process's part of a rollout's groups: which rows are whose, their scores, others in the place of dead ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from rewards import Reward, score
from rl.errors import RewindError
from rl.triplets import Scored
from trainers.grpo.advantages import dead_groups, parts_of_groups
from trainers.grpo.role import Part, PolicyRole

Draw = Callable[[Sequence[Part]], list[list[Any]]]


@dataclass(frozen=True)
class Groups:
    """Groups of trajectories, of which a process may draw a part.

    Args:
        role: draws them; a group is all steps of all trajectories of one of its chains.
        rewards: with their weights.
        num_training: so many of the chains, the first ones, may come in the place of a dead group's.
        retries: how often a group whose rewards are all alike is replaced.
        seed: of the run.
        accelerator: of the trainer, for what all processes have.
        log_metric: takes a name and a number.
    """

    role: PolicyRole
    rewards: Sequence[Reward]
    num_training: int
    retries: int
    seed: int
    accelerator: Accelerator
    log_metric: Callable[[str, float], None]
    heard: list[bool] = field(default_factory=list, init=False)
    """Something, once a candidate had a total."""

    def everyones(self, values: list[Any]) -> list[Any]:
        """What all processes have, one after the other."""
        return gather_object(values) if self.accelerator.num_processes > 1 else values

    def parts(self, prompts: list[str], group: int) -> list[Part]:
        """What this process's rows are: the chain's number and trajectories of its group, which may span processes.

        Args:
            prompts: a chain's number as text for each row of this process, repeated as TRL does.
            group: rows a group.

        Raises:
            RewindError: the rows of all processes, one after the other, are no whole groups, or those of this one no
                whole trajectories.
        """
        steps, everyone = self.role.steps, self.everyones(prompts)
        if everyone != [prompt for prompt in everyone[::group] for _ in range(group)] or len(prompts) % steps:
            raise RewindError("TRL did not repeat a group's prompts one after the other: this release is not supported")
        first = self.accelerator.process_index * len(prompts) // steps
        parts = parts_of_groups(first, len(prompts) // steps, group // steps)
        return [(int(everyone[start * steps]), members) for start, members in parts]

    def scored(self, parts: Sequence[Part], rows: Sequence[Any], trainer_state: Any) -> list[list[Any]]:
        """The rows of each part with their scores, once under our contract."""
        batch = self.role.batch(rows, log_metric=self.log_metric, trainer_state=trainer_state)
        scored = score(self.rewards, batch)
        found = iter([self.role.scored(row, one) for row, one in zip(rows, scored, strict=True)])
        return [[next(found) for _ in range(len(members) * self.role.steps)] for _, members in parts]

    def replace_dead(
        self, parts: list[Part], rows: list[list[Any]], first_row: int, group: int, step: int, draw: Draw
    ) -> list[list[Any]]:
        """Draw other sources and actions in the place of groups whose totals are all alike, within the budget.

        The replacement depends on seed, step and the group's number alone, so that every process takes the same.

        Args:
            parts: of this process.
            rows: what was drawn for each.
            first_row: number of this process's first row among those of all.
            group: rows a group.
            step: of the optimizer.
            draw: draws and scores parts.

        Returns:
            This process's parts of what was replaced; `parts` and `rows` hold what has come in their place.
        """
        replaced: list[list[Any]] = []
        steps, members = self.role.steps, group // self.role.steps
        starts = np.cumsum([0, *(len(mine) for _, mine in parts[:-1])]) + first_row // steps
        for attempt in range(self.retries + 1):
            totals = self.everyones([row.scored.total for part in rows for row in part])
            dead = dead_groups(totals, members, steps)
            if attempt == 0:
                self._check_scored(totals, [row.scored for part in rows for row in part])
                self.log_metric("dead_groups", float(dead.mean()))
            if attempt == self.retries or not dead.any():
                break
            again = [i for i, start in enumerate(starts) if dead[start // members]]
            for i in again:
                rng = np.random.default_rng((self.seed, step, attempt, int(starts[i]) // members))
                parts[i] = (int(rng.integers(self.num_training)), parts[i][1])
            for i, part in zip(again, draw([parts[i] for i in again]), strict=True) if again else ():
                replaced.append(rows[i])
                rows[i] = part
        return replaced

    def _check_scored(self, totals: Sequence[float | None], scored: Sequence[Scored]) -> None:
        """Stop a run whose rewards have never said anything: it would come to its end and have learned nothing.

        Raises:
            RewindError: no candidate so far has a total, in any process.
        """
        if not self.heard and any(total is not None for total in totals):
            self.heard.append(True)
        if not self.heard:
            silent = [r.name for r in self.rewards if all(one.scores.get(r.name) is None for one in scored)]
            whose = f"{' and '.join(silent)} gave None for each" if silent else "each lacks one of its rewards"
            raise RewindError(
                f"none of the first step's {len(totals)} candidates has a total: {whose}. A candidate needs a number "
                "from every reward, and a step without a total teaches nothing"
            )
