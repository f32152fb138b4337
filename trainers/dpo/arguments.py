"""Arguments of `train_dpo.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DPOConfig

from trainers.common.arguments import A_DAY, WAIT_HELP, DrawArguments, StartsAnywhere


@dataclass
class DPOArguments(DrawArguments):
    """Arguments of `train_dpo.py` beside TRL's."""

    validation: list[str] = field(
        default_factory=list,
        metadata={
            "help": "JSON lists of held-out triplets; pairs are drawn for them once, before training, and evaluated on "
            "with --eval_strategy epoch or steps"
        },
    )
    min_gap: float = field(default=0.5, metadata={"help": "least difference of totals between chosen and rejected"})


@dataclass
class RewindDPOConfig(StartsAnywhere, DPOConfig):
    """TRL's `DPOConfig` with defaults for LoRA, which also starts where there is no GPU."""

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    ddp_timeout: int = field(default=A_DAY, metadata={"help": WAIT_HELP})
    max_length: int | None = field(default=None, metadata={"help": "Not used: nothing is cut."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that transformers' parser can read)
        default="tensorboard", metadata={"help": "Where to report to."}
    )
