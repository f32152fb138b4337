"""Arguments of `train_grpo.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from rl.models.saying import USUAL_TOKENS
from trainers.common.arguments import A_DAY, WAIT_HELP, ImproveArguments, StartsAnywhere

REWARDS = {"fdm": ["idm_margin=1.0", "keep_unchanged=0.25"], "idm": ["fdm_likelihood=1.0"]}
"""Of each role, where none are given."""


@dataclass
class GRPOArguments(ImproveArguments):
    """Arguments of `train_grpo.py` beside TRL's."""

    role: str = field(
        default="fdm",
        metadata={
            "help": "what is improved: fdm, the forward model of --fdm, whose pictures --idm rewards; or idm, the "
            "inverse model of --idm, whose sentences about the pairs of --triplets, words or not, --fdm rewards",
            "choices": ["fdm", "idm"],
        },
    )
    fdm: str | None = field(
        default=None,
        metadata={"help": "run folder of the forward model to improve; with --role idm of the one that judges"},
    )
    idm: str | None = field(
        default=None,
        metadata={
            "help": "run folder of the inverse model that the rewards ask; with --role idm of the one to improve"
        },
    )
    rewards: list[str] = field(
        default_factory=list,
        metadata={
            "help": "built-in names, file.py:function or package.module:function, each with =WEIGHT (default: "
            "idm_margin=1.0 keep_unchanged=0.25; with --role idm fdm_likelihood=1.0)"
        },
    )
    max_sentence_tokens: int = field(
        default=USUAL_TOKENS, metadata={"help": "with --role idm: the most tokens of a sentence, its end included"}
    )
    validation: list[str] = field(
        default_factory=list,
        metadata={"help": "JSON lists to evaluate on while training, with --eval_strategy steps --eval_steps N"},
    )
    dead_group_retries: int = field(
        default=0, metadata={"help": "how often a group whose rewards are all alike is replaced by another"}
    )
    spread_floor: float | None = field(
        default=None, metadata={"help": "divide advantages by their group's standard deviation, at least by this"}
    )
    importance_advantages: str = field(
        default="none",
        metadata={
            "help": "weigh a token's advantage by whether it changes: in the true target, in the group's other "
            "candidates, or (to compare) in the candidate itself",
            "choices": ["none", "target", "group", "own"],
        },
    )
    guidance: float = field(
        default=1.0,
        metadata={
            "help": "train the policy that samples with this classifier-free guidance, at twice the cost of a pass; 1 "
            "is off, which is advised: others' policies collapsed when guidance was on while they trained"
        },
    )
    draft: bool = field(
        default=False,
        metadata={
            "help": "guess that targets go on as their sources do: the same candidates (in half precision up to "
            "rounding) in fewer passes, where up to 32 are drawn at once and most of a picture stays as it is"
        },
    )
    rollout_steps: int = field(
        default=1,
        metadata={
            "help": "M, actions of a trajectory, each prediction the next one's source; above 1 it trains on chains "
            "among --triplets, and batch sizes count predictions: a group is num_generations x M of them"
        },
    )
    rollout_credit: str = field(
        default="reward_to_go",
        metadata={
            "help": "what each prediction of a trajectory is credited with: its reward and those of later steps, or "
            "the mean of all steps (arXiv 2509.23958)",
            "choices": ["reward_to_go", "trajectory"],
        },
    )
    max_sampler_gap: float | None = field(
        default=None,
        metadata={
            "help": "stop where sampler and loss differ by more nats a token on average (its 99 %% quantile: ten times "
            "that); 1e-4 in float32, 0.05 in half precision"
        },
    )
    importance_correction: float | None = field(
        default=None,
        metadata={
            "help": "weigh each token by the loss's probability over the sampler's, at most by this; 0 is off "
            "(default: 2 in half precision, off in float32)"
        },
    )
    early_stop: int = field(
        default=0, metadata={"help": "stop after so many evaluations without a better one; 0 never does"}
    )
    monitors: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "'all', 'none', NAME=WARN:STOP: how far it may move from its start (docs/guide/train.md)"},
    )
    profile: bool = field(
        default=False, metadata={"help": "log where a step's time goes (profile/...), and print it at the end"}
    )
    judge_idm: str | None = field(
        default=None, metadata={"help": "an inverse model that never trains and does not reward, to be watched"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rewards = self.rewards or [*REWARDS.get(self.role, [])]


@dataclass
class RewindGRPOConfig(StartsAnywhere, GRPOConfig):
    """TRL's `GRPOConfig` with defaults for image tokens under LoRA.

    Advantages are not divided by the group's standard deviation, which turns noise into signal where a group's rewards
    are nearly alike; no KL term unless `beta` asks for one.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    ddp_timeout: int = field(default=A_DAY, metadata={"help": WAIT_HELP})
    scale_rewards: str = field(default="none", metadata={"help": "'group', 'batch' or 'none'."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that transformers' parser can read)
        default="tensorboard", metadata={"help": "Where to report to."}
    )

    def __post_init__(self) -> None:
        # On the command line a flag is a text; TRL reads a true of YAML's or Python's the same way.
        self.scale_rewards = {"true": "group", "false": "none"}.get(str(self.scale_rewards).lower(), self.scale_rewards)
        super().__post_init__()
