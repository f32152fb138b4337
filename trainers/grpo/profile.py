"""Where a step's time goes: `train_grpo.py --profile true`. Off, nothing is watched and nothing waits for a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewards import Batch, Reward

OTHER = "other"


def now() -> float:
    """Seconds, after all that a GPU has been given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Parts:
    """Seconds by part; what runs inside another part counts there alone, so that parts sum up to what they watch.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._running: list[tuple[str, bool]] = []
        self._since = clock()

    def _turn(self) -> None:
        """Give the time since the last turn to what runs."""
        here, name = self.clock(), self._running[-1][0] if self._running else OTHER
        self.seconds[name] = self.seconds.get(name, 0.0) + here - self._since
        self._since = here

    @contextmanager
    def part(self, name: str, closed: bool = False) -> Iterator[None]:
        """Time of the body as `name`; of a `closed` part, that of parts inside it too."""
        if self._running and self._running[-1][1]:
            yield
            return
        self._turn()
        self._running.append((name, closed))
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def take(self) -> dict[str, float]:
        """What was counted since the last call; every name that there ever was is in it."""
        self._turn()
        found, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return found

    def timed(self, name: str, function: Callable[..., Any], closed: bool = False) -> Callable[..., Any]:
        """The function, its time counted as `name`."""

        @wraps(function)
        def timed(*arguments: Any, **settings: Any) -> Any:
            with self.part(name, closed):
                return function(*arguments, **settings)

        return timed


@dataclass(frozen=True)
class TimedReward(Reward):
    """A reward whose time is counted as `reward/NAME`."""

    parts: Parts = field(default_factory=Parts)

    def __call__(self, batch: Batch) -> list[float | None]:
        with self.parts.part(f"reward/{self.name}"):
            return super().__call__(batch)


class Profile(TrainerCallback):
    """Logs `profile/PART`, seconds a step, and prints at the end what they were on average.

    A step reaches from the end of the last one to its own, so logging, evaluation and checkpoints count to the step
    after them. Parts: `draw`, `encode` and `decode` (pictures), `reward/NAME`, `log_probs` (forward passes of policy
    and reference), `backward`, `optimizer`, `monitors`, `store`, `logging`, `evaluation`, `checkpoint`, `other`.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self.parts = Parts(clock)
        self.trainer: Any = None
        self.steps: list[dict[str, float]] = []
        self._changed: list[tuple[Any, str, Any]] = []

    def timed(self, rewards: Sequence[Reward]) -> list[Reward]:
        """The rewards, watched."""
        values = [{one.name: getattr(reward, one.name) for one in fields(Reward)} for reward in rewards]
        return [TimedReward(**value, parts=self.parts) for value in values]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self.trainer
        self._watch("draw", trainer.groups.role, "draw")
        self._watch("encode", trainer.vlm, "codes")
        self._watch("decode", trainer.vlm, "decode")
        self._watch("log_probs", trainer, "_get_per_token_logps_and_entropies")
        self._watch("backward", trainer.accelerator, "backward")
        self._watch("optimizer", trainer.accelerator, "clip_grad_norm_")
        self._watch("optimizer", trainer.optimizer, "step")
        self._watch("monitors", trainer.monitors, "observe")
        self._watch("store", trainer.store, "append")
        self._watch("logging", trainer, "log")
        self._watch("evaluation", trainer, "evaluate", closed=True)
        self._watch("checkpoint", trainer, "_save_checkpoint", closed=True)
        self.parts.take()

    def _watch(self, part: str, owner: Any, name: str, closed: bool = False) -> None:
        if owner is not None:
            self._changed.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, self.parts.timed(part, getattr(owner, name), closed))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        found = self.parts.take()
        self.steps.append(found)
        for name, seconds in found.items():
            self.trainer._metrics["train"][f"profile/{name}"].append(seconds)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for owner, name, before in self._changed:
            delattr(owner, name)
            if before is not None:  # a scheduler puts a method of its own on an optimizer
                setattr(owner, name, before)
        self._changed.clear()
        if state.is_world_process_zero and self.steps:
            tqdm.write(self.table())  # above a progress bar

    def table(self) -> str:
        """Seconds a step and share of each part; the first step, which warms up, is left out if there are others."""
        steps = self.steps[1:] or self.steps
        names = {name for step in steps for name in step}
        means = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in names}
        total = sum(means.values())
        lines = [f"where a step's time goes, mean of {len(steps)}: {total:.3f} s"]
        for name, seconds in sorted(means.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:24s} {seconds:9.3f} s {100 * seconds / max(total, 1e-12):5.1f} %")
        return "\n".join(lines)
