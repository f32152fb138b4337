"""A resumed run goes on in the order of the epoch that it is in, and logs, evaluates and saves as it is asked to now.

Seams that it touches: of TRL 1.16 its `RepeatSampler`, which cannot be told the epoch, as transformers tells a sampler
that has `set_epoch`; of transformers 5.23 the callbacks of `Trainer`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler


class OrderOfEpoch(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler draws an order after the other, from one generator; this one can go to any epoch's."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next order be the one that so many orders have gone before."""
        self.generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=self.generator)


class TellsTheEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler of a resumed run which epoch it is in.

    transformers 5.23 does so too, but where several processes share the batches and some are skipped it reaches no
    sampler of another kind than its own, and `OrderOfEpoch` would begin with the order of the first epoch.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **passed: Any
    ) -> None:
        batches: Any = passed["train_dataloader"].batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        sampler: Any = getattr(batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch or 0))


class StepsAsAsked(TrainerCallback):  # type: ignore[misc]
    """Lets a resumed run log, evaluate and save as often as it is asked to now.

    transformers 5.23 takes the numbers that the checkpoint holds.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)
