"""What to watch while a reward trains a policy: signs of a hacked reward, each with a rule that warns or stops.

The reward itself cannot show that it is hacked, it only rises. So what is watched is something that it does not pay
for, against how it was when training began: known hacks darkened every picture (arXiv 2509.23958) or ended in a still
video (arXiv 2603.17808).
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from rl.errors import RewindError
from rl.evaluation.rollout_measures import measure
from rl.models.roles import InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.running.files import read_json, write_whole
from rl.triplets import Scored, Triplet
from rl.words import did_you_mean
from trainers.common.checkpoints import KeepsPart
from trainers.common.sharding import on_main
from trainers.grpo.waiting import read_waiting, write_waiting

logger = logging.getLogger("rl")
ROLLOUTS = 2
"""Rollouts in a row beyond a limit before a rule warns or stops, so that one odd batch does neither."""
ENOUGH = 64
"""Candidates that are measured together at least: with fewer, what sources a rollout happens to draw moves the measures
beyond the limits. Smaller rollouts are put together."""


@dataclass(frozen=True)
class Rule:
    """How far a measure may move from its value at the start of training before a warning, and before the run stops.

    `direction` is +1 if only a rise counts, -1 if only a fall does, 0 for both; None means never.
    """

    warn: float | None
    stop: float | None
    direction: int = 0


RULES = {
    "copy_rate": Rule(0.1, 0.3, +1),
    "duplicates": Rule(0.2, 0.5, +1),
    "entropy": Rule(0.4, 0.8),
    "code_usage": Rule(0.2, 0.5),
    "brightness": Rule(0.05, 0.15),
    "sharpness": Rule(0.2, 0.5),
    "colour": Rule(0.05, 0.15),
    "survival": Rule(0.1, 0.3, -1),
    "judge_idm": Rule(0.5, 1.5, -1),
}
"""Every monitor with its usual rule; what each measures stands in `rl.evaluation.rollout_measures.measure`."""


class Watches(Protocol):
    """What is measured of a rollout; of predicted pictures that is `rl.evaluation.rollout_measures.measure`."""

    vlm: UnifiedVLM

    def measure(
        self, rows: Sequence[Triplet], scored: Sequence[Scored], group: int, judge: InverseDynamics | None
    ) -> dict[str, float]:
        """A number a monitor; rows and what was scored side by side, a group's one after the other."""

    def write(self, file: Path, rows: Sequence[Triplet], scored: Sequence[Scored]) -> None:
        """Write what `measure` reads of rows that wait for it."""

    def read(self, file: Path) -> tuple[list[Triplet], list[Scored]]:
        """What `write` wrote."""


def rules_of(
    specifications: str | Sequence[str], with_judge: bool = False, usual: Mapping[str, Rule] = RULES
) -> dict[str, Rule]:
    """Rules from 'NAME', 'NAME=WARN', 'NAME=WARN:STOP' or 'NAME=:STOP'; 'all' is every monitor with its usual rule.

    `usual` are the monitors that there are. Later ones win, so `all copy_rate=0.2:0.5` changes one rule; 'none' alone
    watches nothing. Without a judge 'all' means all others.

    Raises:
        RewindError: an unknown name, limits that are no positive numbers, `judge_idm` without a judge.
    """
    specifications = [specifications] if isinstance(specifications, str) else specifications
    found: dict[str, Rule] = {}
    for text in [] if list(specifications) == ["none"] else specifications:
        name, equals, limits = text.partition("=")
        if text == "all":
            found |= {key: rule for key, rule in usual.items() if with_judge or key != "judge_idm"}
            continue
        if name == "judge_idm" and not with_judge:
            raise RewindError("the monitor 'judge_idm' needs an inverse model that does not reward: give --judge_idm")
        if name not in usual:
            near = did_you_mean(name, [*usual, "all", "none"])
            raise RewindError(f"there is no monitor '{name}'{near}: there are {', '.join(usual)}, 'all' and 'none'")
        if not equals:
            found[name] = usual[name]
            continue
        try:
            warn, stop = [float(part) if part else None for part in (*limits.split(":"), "")[:2]]
        except ValueError as error:
            raise RewindError(f"the monitor '{text}' must be NAME=WARN:STOP, e.g. {name}=0.1:0.3") from error
        if limits.count(":") > 1 or not all(limit is None or limit > 0 for limit in (warn, stop)):
            raise RewindError(f"the limits of the monitor '{text}' must be above 0: how far it may move, WARN:STOP")
        found[name] = Rule(warn, stop, usual[name].direction)
    return found


class Monitors(TrainerCallback, ExportableState, KeepsPart):  # type: ignore[misc]
    """Watches rollouts by rules; the trainer calls `observe` after each of them.

    The first rollout, which the policy still draws as it was, is what later ones are compared with; it is kept in a
    file, so that a resumed run is compared with the same start. Checkpoints hold what has been counted so far, and
    what waits to be measured. A run that is stopped writes no checkpoint for it; `stopped` then holds the sentence to
    end with.

    Args:
        rules: by monitor.
        start_file: where the measures at the start are kept, None for nowhere.
        judge: an inverse model that is not the rewarding one and never trains, for `judge_idm`.
        watches: what is measured, None for predicted pictures.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        start_file: Path | None = None,
        judge: InverseDynamics | None = None,
        watches: Watches | None = None,
    ) -> None:
        if "judge_idm" in rules and judge is None:
            raise RewindError("the monitor 'judge_idm' needs a judge")
        self.rules = dict(rules)
        self.start_file, self.judge, self.watches = start_file, judge, watches
        self.start: dict[str, float] | None = None
        self.stopped: str | None = None
        self._rows: list[Triplet] = []
        self._scored: list[Scored] = []
        self._beyond: dict[str, int] = {}
        self._warned: list[str] = []
        self._resumed: Path | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps (JSON), and a resumed run goes on with."""
        attributes = {"start": self.start, "stopped": self.stopped, "_beyond": self._beyond, "_warned": self._warned}
        return {"args": {}, "attributes": copy.deepcopy(attributes)}

    def write_part(self, folder: Path) -> None:
        """Write what waits to be measured."""
        if self._rows:
            write = write_waiting if self.watches is None else self.watches.write
            write(_part(folder), self._rows, self._scored)

    def read_part(self, folder: Path) -> None:
        """Go on with what waited; it is read when the next rollout brings its backbone."""
        self._resumed = _part(folder) if _part(folder).is_file() else None

    def observe(
        self,
        rows: Sequence[Triplet],
        scored: Sequence[Scored],
        group: int,
        log: Callable[[str, float], None],
        step: int,
    ) -> None:
        """Measure a rollout, log it as `monitors/NAME`, and hold it against the rules.

        One of fewer than `ENOUGH` candidates (of all processes) waits until those after it make up for that.
        """
        if not self.rules:
            return
        if self._resumed is not None:
            if self.watches is not None:
                self._rows, self._scored = self.watches.read(self._resumed)
            else:
                self._rows, self._scored = read_waiting(self._resumed, scored[0].candidate.backbone)
            self._resumed = None
        self._rows += rows
        self._scored += scored
        if len(self._rows) * PartialState().num_processes < ENOUGH:
            return
        measures = measure if self.watches is None else self.watches.measure
        found = _mean_of_processes(measures(self._rows, self._scored, group, self.judge))
        self._rows, self._scored = [], []
        if self.start is None:
            self.start = self._first(found)
        for name in self.rules:
            log(f"monitors/{name}", found[name])
        limits = [told for name, rule in self.rules.items() if (told := self._hold(name, rule, found[name], step))]
        if limits and self.stopped is None:
            self.stopped = "; ".join(limits)

    def _first(self, found: dict[str, float]) -> dict[str, float]:
        """What an earlier run in the same folder measured first, or this one, which then keeps it."""
        file = self.start_file
        if file is None:
            return found

        def take() -> dict[str, float]:
            if file.is_file():
                return {**found, **read_json(file)}
            write_whole(file, json.dumps(found, indent=1) + "\n")
            return found

        return on_main(take)

    def _hold(self, name: str, rule: Rule, value: float, step: int) -> str | None:
        """Warn if a value has moved too far; what to stop with if it has been beyond that limit often enough."""
        assert self.start is not None
        moved = value - self.start[name]
        far = abs(moved) if rule.direction == 0 else rule.direction * moved
        told = f"'{name}' went from {self.start[name]:.3g} at the start to {value:.3g} at step {step}"
        if self._lasting(f"{name} warns", far, rule.warn) and name not in self._warned:
            self._warned.append(name)
            logger.warning("monitor: %s (warns beyond a change of %g)", told, rule.warn)
        if self._lasting(f"{name} stops", far, rule.stop):
            return f"{told}, a change of more than {rule.stop:g} twice in a row"
        return None

    def _lasting(self, what: str, far: float, limit: float | None) -> bool:
        """Whether a measure has been beyond a limit for `ROLLOUTS` rollouts."""
        if limit is None:
            return False
        self._beyond[what] = self._beyond.get(what, 0) + 1 if far > limit else 0
        return self._beyond[what] >= ROLLOUTS

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """End the run after this step if a rule said so."""
        if self.stopped is not None:
            control.should_log, control.should_training_stop = True, True
            control.should_save = False  # a collapsed policy must not push a good checkpoint out,
            control.should_evaluate = False  # nor look like the best one, which transformers would save
        return control

    def check(self, output: Path) -> None:
        """Raise if a rule stopped the run, saying what is left of it.

        Raises:
            RewindError: the sentence of the rule.
        """
        if self.stopped is None:
            return
        kept = sorted((p.name for p in output.glob("checkpoint-*")), key=lambda name: int(name.rpartition("-")[2]))
        left = f"the checkpoints are as they were: {', '.join(kept)}" if kept else "there was no checkpoint yet"
        raise RewindError(
            f"a monitor stopped the run in {output}: {self.stopped}; the reward may be gamed, which "
            f"scripts/audit_reward.py would show; {left}"
        )


def _part(folder: Path) -> Path:
    return folder / f"monitors-{PartialState().process_index}.safetensors"


def _mean_of_processes(found: dict[str, float]) -> dict[str, float]:
    """The mean of what all processes measured, so that they stop together."""
    if PartialState().num_processes == 1:
        return found
    everyone = gather_object([found])
    return {name: sum(one[name] for one in everyone) / len(everyone) for name in found}
