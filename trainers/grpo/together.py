"""A rollout's rows in the order of their prompts, so that a pass of the loss has whole groups and reads few prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from rl.models.packing import shares

Rows = dict[str, Any]


class KeepsGroupsTogether:
    """For TRL's `GRPOTrainer` 1.16, whose `_prepare_inputs` shuffles a rollout before it divides it into passes.

    Where all passes of a rollout are of one optimizer step, their order is nothing but a sum's; there, groups whose
    prompts are so long that they are read once stand together again. Where a rollout serves several steps, the shuffle
    is what makes each a sample of it, and stays; so it does where a loss compares tokens within a pass.
    """

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        trainer: Any = self
        before = trainer._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        passes, args = trainer._buffered_inputs, trainer.args
        if passes is before or len(passes) < 2:
            return inputs
        if args.gradient_accumulation_steps % (len(passes) * trainer.num_iterations):
            return inputs
        if trainer.top_entropy_quantile < 1 or trainer._entropy_bonus_enabled:
            return inputs
        if shares(trainer.vlm, passes[0]["prompt_ids"].shape[1]):
            trainer._buffered_inputs = together(passes)
        return trainer._buffered_inputs[trainer._step % len(passes)]


def together(passes: list[Rows]) -> list[Rows]:
    """The same rows in as many equal passes, those of equal prompts next to one another.

    Rows of dead groups, of which the loss reads nothing, are dealt out evenly: TRL logs means over passes, and one
    without any token would count as 0 in them.
    """
    whole = {name: _joined([one[name] for one in passes]) for name in passes[0]}
    _, which = torch.unique(whole["prompt_ids"], dim=0, return_inverse=True)
    by_prompt, live = which.argsort(stable=True), whole["completion_mask"].any(-1)
    some, dead = by_prompt[live[by_prompt]], by_prompt[~live[by_prompt]]
    size = len(which) // len(passes)
    parts: list[Tensor] = []
    taken = 0
    for number in range(len(passes)):
        begin, end = (len(some) * at // len(passes) for at in (number, number + 1))
        fill = size - (end - begin)
        parts += [some[begin:end], dead[taken : taken + fill]]
        taken += fill
    order = torch.cat(parts)
    divided: list[Rows] = split_tensor_dict(
        {name: _ordered(value, order) for name, value in whole.items()}, len(passes)
    )
    return divided


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.dim():
        return torch.cat(values)
    return [item for value in values for item in value] if isinstance(first, list) else first


def _ordered(value: Any, order: Tensor) -> Any:
    if isinstance(value, Tensor) and value.dim():
        return value[order]
    return [value[row] for row in order.tolist()] if isinstance(value, list) else value
