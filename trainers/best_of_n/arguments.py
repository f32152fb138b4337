"""Arguments of `train_best_of_n.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainers.common.arguments import DrawArguments


@dataclass
class BestOfNArguments(DrawArguments):
    """Arguments of `train_best_of_n.py` beside TRL's."""

    min_lead: float = field(default=0.0, metadata={"help": "keep the best only if it leads its group's mean so much"})
    min_changed: int = field(default=1, metadata={"help": "keep the best only if so many tokens changed"})
    top: int = field(default=1, metadata={"help": "learn from so many different candidates of a group above its mean"})
    reward_temperature: float | None = field(
        default=None, metadata={"help": "weigh them by exp(total / this); all alike if not given"}
    )
