"""What the stages of the main job hand on, how much of everything there is, and what a stopped run goes on from."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.running.files import write_whole
from rl.triplets import Triplet
from rl.world import World

logger = logging.getLogger("rl")
PROGRESS_FILE = "progress.json"
ADAPTERS = {"base": None, "grpo": "default"}
"""Systems whose adapter has another name than their own; TRL expects the policy's to be `default`."""


@dataclass(frozen=True)
class Budget:
    """How much of everything. The defaults are the demo's."""

    labelled: int = 1000
    videos: int = 800
    selected: int = 1000
    test: int = 400
    validation: int = 100
    idm_steps: int = 300
    fdm_steps: int = 500
    grpo_steps: int = 12
    grpo_prompts: int = 32
    grpo_evaluations: int = 3
    grpo_validation: int = 32
    grpo_keep: float = 0.2
    grpo_confidence: float = 1.0
    group_size: int = 8
    best_of_n_steps: int = 60
    idm_batch_size: int = 32
    fdm_batch_size: int = 16
    idm_rank: int = 32
    fdm_rank: int = 32
    idm_learning_rate: float = 1.5e-3
    sft_learning_rate: float = 2.8e-3
    bootstrapped_learning_rate: float = 2.8e-3
    rl_learning_rate: float = 2.5e-4
    best_of_n_learning_rate: float = 2e-4
    candidates: int = 16
    searched: int = 100
    fitted_candidates: int = 8
    rounds: int = 2
    idm_dropout: float = 0.2
    sentences: int = 4
    greedy_labels: int = 0
    idm_on_video_steps: int = 0
    equal_compute_steps: int = 0
    bootstrapped_steps: int = 0  # of those that learn from video, too; 0: as many as `fdm_steps`
    continued_steps: int = 0  # more of `bootstrapped`, without reward: about as long as GRPO takes
    continued_learning_rate: float = 1e-3
    proposer_steps: int = (
        0  # of a proposer of fresh actions, which training by reward then tries; 0: it tries known ones
    )

    def __post_init__(self) -> None:
        weights = ("grpo_keep", "grpo_confidence")
        video = ("idm_on_video_steps", "bootstrapped_steps", "continued_steps", "proposer_steps")
        free = ("idm_dropout", "greedy_labels", "equal_compute_steps", *video, *weights)
        if min(value for name, value in vars(self).items() if name not in free) <= 0:
            raise RewindError(f"every number of the budget must be above 0, but for {', '.join(free)}")
        if min(getattr(self, name) for name in free) < 0 or self.idm_dropout >= 1 or self.greedy_labels > 1:
            raise RewindError(
                "idm_dropout must be from 0 to below 1, greedy_labels 0 or 1, steps and weights 0 (none) or more"
            )
        if self.greedy_labels and self.sentences == 1:
            raise RewindError("one sentence a pair is its greedy label: greedy_labels 1 takes sentences above 1")

    def told(self) -> dict[str, Any]:
        """The amounts as a run's config holds them: the youngest only where they do something, so that a run that was
        begun before them goes on.
        """
        amounts = asdict(self)
        if not self.continued_steps:
            del amounts["continued_steps"], amounts["continued_learning_rate"]
        if not self.proposer_steps:
            del amounts["proposer_steps"]
        return amounts

    def expected(self) -> dict[str, float]:
        """How long the stages take compared with each other, in the order they run in; for the time left."""
        fdm, equal = (0.006 * self.fdm_batch_size * n for n in (self.fdm_steps, self.equal_compute_steps))
        both = 0.006 * self.fdm_batch_size * (self.bootstrapped_steps or self.fdm_steps)
        continued = 0.006 * self.fdm_batch_size * self.continued_steps
        again = 0.0075 * self.idm_batch_size * self.idm_on_video_steps
        drawn = self.grpo_steps * self.grpo_prompts * self.group_size
        proposing = {"proposer": 0.0075 * self.idm_batch_size * self.proposer_steps, "proposed": 0.0004 * drawn}
        fit = 2 + 0.014 * self.validation * self.fitted_candidates
        return {
            "data": 1 + 0.001 * self.labelled,
            "idm": 0.0075 * self.idm_batch_size * self.idm_steps,
            "judge_idm": 0.5,
            "sft": fdm,
            **({"sft_equal_compute": equal} if equal else {"sft_twice_as_long": 2 * fdm}),
            "premise": fit + (0.02 if self.sentences == 1 else 0.04 + 0.01 * self.sentences) * self.validation,
            "labels": 5 + (0.03 + 0.008 * self.sentences) * self.videos,
            **({"idm_on_video": again} if again else {}),
            **({"bootstrapped_greedy": both} if self.greedy_labels else {}),
            "bootstrapped": both + 0.001 * self.selected,
            **({"bootstrapped_continued": continued} if continued else {}),
            "mix": fit,
            **(proposing if self.proposer_steps else {}),
            "grpo": 0.013 * drawn,
            "best_of_n_training": 0.004 * drawn + 0.006 * self.fdm_batch_size * self.best_of_n_steps,
            **dict.fromkeys(("mix_grpo", "mix_best_of_n_training"), fit),
            "evaluation": 0.3 * self.test + 0.03 * self.searched * self.candidates,
            "report": 5.0,
        }


def with_changes(budget: Budget, specs: Sequence[str]) -> Budget:
    """A budget with some amounts replaced, from `["test=200", "fdm_learning_rate=1e-3"]`.

    Raises:
        RewindError: an unknown name, a value of another kind, or one that is not above 0.
    """
    changes: dict[str, Any] = {}
    for spec in specs:
        name, _, value = spec.partition("=")
        if name not in asdict(budget):
            raise RewindError(f"--budget {spec}: the amounts are {', '.join(asdict(budget))}")
        try:
            changes[name] = type(getattr(budget, name))(value)
        except ValueError as error:
            raise RewindError(f"--budget {spec}: '{value}' is no number of its kind") from error
    return replace(budget, **changes)


@dataclass
class Story:
    """What the stages hand on, and how long each took. What it keeps on disk lets an interrupted run go on."""

    world: World
    splits: dict[str, World]
    vlm: UnifiedVLM
    output: Path
    seed: int
    budget: Budget
    seconds: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    gap: float = 0.0
    labelled: list[Triplet] = field(default_factory=list)
    synthetic: list[Triplet] = field(default_factory=list)
    tried: list[Triplet] = field(default_factory=list)  # named by the IDM and not selected: prompts for RL alone

    def stage(self, name: str, work: Callable[[], Any], adapter: str | None = None, keep: bool = True) -> None:
        """Run a stage, or load its adapter if an earlier run has finished it and its outcome was kept."""
        if name in self.seconds:
            logger.warning("--- %s: done by an earlier run", name)
            if adapter is not None:
                self.vlm.attach_adapter(self.output / name / "adapter", adapter)
            return
        logger.warning("--- %s%s", name, self._left())
        begin = time.monotonic()
        work()
        self.seconds[name] = time.monotonic() - begin
        if keep:
            self.keep()

    def _left(self) -> str:
        expected = self.budget.expected()
        planned = sum(expected.get(name, 0.0) for name in self.seconds)
        # The first stages are short: a minute at the expected pace keeps them from deciding.
        pace = (sum(self.seconds.values()) + 60) / (planned + 60)
        left = pace * sum(seconds for name, seconds in expected.items() if name not in self.seconds)
        return f" (stage {len(self.seconds) + 1} of {len(expected)}, about {max(1, round(left / 60))} min left)"

    def keep(self) -> None:
        """Write what a later run needs, beside and moved into place."""
        kept = {"seconds": self.seconds, "data": self.data, "curves": self.curves, "gap": self.gap}
        write_whole(self.output / PROGRESS_FILE, json.dumps(kept, indent=1) + "\n")

    def restore(self) -> None:
        """Take over what an interrupted run kept in the same folder."""
        file = self.output / PROGRESS_FILE
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.seconds, self.data, self.curves, self.gap = (kept[k] for k in ("seconds", "data", "curves", "gap"))

    def fdm(self, name: str) -> ForwardDynamics:
        """A system by its name; 'base' is the bare base."""
        return ForwardDynamics(self.vlm, ADAPTERS.get(name, name))

    @property
    def idm(self) -> InverseDynamics:
        """The inverse model that labels and rewards."""
        return InverseDynamics(self.vlm, "idm")

    def verifier(self, name: str) -> InverseDynamics:
        """The inverse model that says which candidates of a system are good: for those that have learned from video
        the one that has, too, if the budget has one.
        """
        learned = "idm_on_video" in self.seconds and not name.startswith("sft")
        return InverseDynamics(self.vlm, "idm_on_video" if learned else "idm")

    @property
    def judge(self) -> InverseDynamics:
        """The inverse model that only judges."""
        return InverseDynamics(self.vlm, "judge_idm")
