"""What is done to the advantages of a rollout before the loss takes them."""

from __future__ import annotations

from typing import Any

import torch

from trainers.common.sharding import gathered
from trainers.grpo.advantages import by_step, by_trajectory, dead_rows, shaped, token_weights, trajectory_advantages
from trainers.grpo.trajectories import changed_tokens


def shape_advantages(trainer: Any, output: dict[str, Any]) -> None:
    """Leave groups that are all alike out of the loss, their KL term too; divide and weigh as configured.

    What is compared is always a step's predictions with one another.

    Args:
        trainer: a `WorldModelGRPOTrainer` with its last rollout.
        output: what TRL made of that; its `advantages` and `completion_mask` are changed.
    """
    here, steps = output["advantages"], trainer.rollout_steps
    group = trainer.num_generations // steps
    first = trainer.accelerator.process_index * len(here)
    part = slice(first, first + len(here))
    everyone = trainer.accelerator.gather(here)
    if steps > 1:
        totals = trainer.groups.everyones([scored.total for scored in trainer.last_scored])
        everyone = trajectory_advantages(totals, group, steps, trainer.rollout_credit).to(here.device)
    everyone = by_step(everyone, group, steps)
    dead = by_trajectory(dead_rows(everyone, group), group, steps)[part]
    output["completion_mask"] = output["completion_mask"].masked_fill(dead[:, None], 0)
    weights = None
    if trainer.importance_advantages != "none":
        with gathered(trainer):  # targets may have to be encoded
            mine = changed_tokens(trainer.vlm, trainer.last_rows, true=trainer.importance_advantages == "target")
        changed = by_step(trainer.accelerator.gather(mine.to(here.device)), group, steps)
        weights_BK = token_weights(changed, group, trainer.importance_advantages)
        free = trainer.vlm.layout.grammar_of(trainer.last_rows[0].source_ids).free  # all have one size
        places = torch.tensor(free, device=here.device)
        weights = weights_BK.new_zeros(len(weights_BK), len(places))
        weights[:, places] = weights_BK
    found = shaped(everyone, group, spread_floor=trainer.spread_floor, weights_BK=weights)
    output["advantages"] = by_trajectory(found, group, steps)[part]
