"""Arguments of the training scripts in TRL's habits: script arguments, TRL's config, TRL's model config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig, TrlParser, get_peft_config

from rl.errors import RewindError
from trainers.sharding import without_compiler

STORED = "run folders, or their candidates, to train on instead of --triplets and drawing"


@dataclass
class RunArguments:
    """What every training script has."""

    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in --output_dir"})
    overwrite: bool = field(default=False, metadata={"help": "replace what an earlier run left in --output_dir"})


@dataclass
class IDMArguments(RunArguments):
    """Arguments of `train_idm.py` beside TRL's."""

    base: str = field(default="tabletop-chameleon", metadata={"help": "a base by name or folder"})
    triplets: list[str] = field(default_factory=list, metadata={"help": "JSON lists in AURORA's format"})
    limit: int | None = field(default=None, metadata={"help": "only the first triplets of each file"})


@dataclass
class FDMArguments(IDMArguments):
    """Arguments of `train_fdm.py` beside TRL's."""

    synthetic: list[str] = field(default_factory=list, metadata={"help": "IDM-labelled triplets, mixed in"})
    synthetic_share: float | None = field(
        default=None, metadata={"help": "share of --synthetic among what is drawn; all triplets alike if not given"}
    )
    token_weights: bool = field(
        default=False, metadata={"help": "weigh each image token by how much it changes (arXiv 2506.06006)"}
    )
    importance_normalise: str = field(
        default="dataset",
        metadata={"help": "what distances are divided by", "choices": ["dataset", "sample", "none"]},
    )
    importance_floor: float = field(default=2.0, metadata={"help": "weight of a token that does not change at all"})
    importance_cap: float = field(default=4.0, metadata={"help": "largest weight before the floor is added"})
    with_idm: bool = field(
        default=False,
        metadata={
            "help": "train an inverse model too, as a second adapter on the backbone, on the same triplets and with "
            "the same settings; it goes to OUTPUT_DIR/idm"
        },
    )


@dataclass
class ImproveArguments(RunArguments):
    """What the scripts have that improve a forward model by rewards."""

    fdm: str | None = field(default=None, metadata={"help": "run folder of the forward model to improve"})
    idm: str | None = field(default=None, metadata={"help": "run folder of the inverse model that the rewards ask"})
    triplets: list[str] = field(default_factory=list, metadata={"help": "JSON lists: sources and actions to try"})
    rewards: list[str] = field(
        default_factory=lambda: ["idm_margin=1.0", "keep_unchanged=0.25"],
        metadata={"help": "built-in names, file.py:function or package.module:function, each with =WEIGHT"},
    )
    reward_arguments: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'by reward, JSON on the command line: \'{"keep_unchanged": {"default": 3}}\''}
    )
    normalise_rewards: bool = field(
        default=False, metadata={"help": "measure each reward in its group's standard deviations before summing"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first triplets of each file"})


@dataclass
class GRPOArguments(ImproveArguments):
    """Arguments of `train_grpo.py` beside TRL's."""

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
    early_stop: int = field(
        default=0, metadata={"help": "stop after so many evaluations without a better one; 0 never does"}
    )
    monitors: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "'all', 'none', NAME=WARN:STOP: how far it may move from its start (docs/guide/train.md)"},
    )
    judge_idm: str | None = field(
        default=None, metadata={"help": "an inverse model that never trains and does not reward, to be watched"}
    )


@dataclass
class BestOfNArguments(ImproveArguments):
    """Arguments of `train_best_of_n.py` beside TRL's."""

    num_candidates: int = field(default=8, metadata={"help": "N, candidates a source and action"})
    min_lead: float = field(default=0.0, metadata={"help": "keep the best only if it leads its group's mean so much"})
    min_changed: int = field(default=1, metadata={"help": "keep the best only if so many tokens changed"})
    top: int = field(default=1, metadata={"help": "learn from so many different candidates of a group above its mean"})
    reward_temperature: float | None = field(
        default=None, metadata={"help": "weigh them by exp(total / this); all alike if not given"}
    )
    candidates: list[str] = field(default_factory=list, metadata={"help": STORED})
    rounds: int = field(default=1, metadata={"help": "rounds of drawing and fine-tuning"})
    temperature: float = field(default=1.0, metadata={"help": "of the candidates"})


@dataclass
class DPOArguments(ImproveArguments):
    """Arguments of `train_dpo.py` beside TRL's."""

    num_candidates: int = field(default=8, metadata={"help": "N, candidates a source and action"})
    min_gap: float = field(default=0.5, metadata={"help": "least difference of totals between chosen and rejected"})
    candidates: list[str] = field(default_factory=list, metadata={"help": STORED})
    rounds: int = field(default=1, metadata={"help": "rounds of drawing and training, each on fresh candidates"})
    temperature: float = field(default=1.0, metadata={"help": "of the candidates"})


class StartsAnywhere:
    """For TRL's configs: start, in one process or in several, where there is no GPU too."""

    def __post_init__(self) -> None:
        config: Any = self
        if not torch.cuda.is_available():
            config.use_cpu = True
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                config.ddp_backend = config.ddp_backend or "gloo"  # else accelerate believes in one process
            config.bf16 = bool(config.bf16)  # TRL's default is bfloat16, which most CPUs only emulate
            if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
                without_compiler()
        super().__post_init__()  # type: ignore[misc]


@dataclass
class RewindGRPOConfig(StartsAnywhere, GRPOConfig):
    """TRL's `GRPOConfig` with defaults for image tokens under LoRA.

    Advantages are not divided by the group's standard deviation, which turns noise into signal where a group's rewards
    are nearly alike; no KL term unless `beta` asks for one.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    scale_rewards: str = field(default="none", metadata={"help": "'group', 'batch' or 'none'."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that transformers' parser can read)
        default="tensorboard", metadata={"help": "Where to report to."}
    )


@dataclass
class RewindDPOConfig(StartsAnywhere, DPOConfig):
    """TRL's `DPOConfig` with defaults for LoRA, which also starts where there is no GPU."""

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that transformers' parser can read)
        default="tensorboard", metadata={"help": "Where to report to."}
    )


@dataclass
class RoleConfig(StartsAnywhere, SFTConfig):
    """TRL's `SFTConfig` with the defaults of arXiv 2506.06006 for an IDM, which also start where there is no GPU."""

    learning_rate: float = field(default=2e-4, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type to use."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that transformers' parser can read)
        default="tensorboard", metadata={"help": "Where to report to."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every X updates steps."})
    z_loss: float = field(
        default=0.0,
        metadata={
            "help": "add so much of (log Z)^2 to the loss, Z over the role's tokens; 1e-4 in PaLM (arXiv 2204.02311, "
            "section 5)"
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.z_loss < float("inf"):
            raise RewindError(f"--z_loss must be a coefficient of 0 or more (1e-4 is usual), not {self.z_loss}")
        super().__post_init__()


@dataclass
class LoraModelConfig(ModelConfig):
    """TRL's `ModelConfig`, with LoRA on; the model itself is given by --base or --fdm."""

    use_peft: bool = field(default=True, metadata={"help": "LoRA; full fine-tuning if false."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "Task type to pass for LoRA."})


def parse(types: Sequence[type[Any]], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Flags over the values of an optional `--config` YAML file, as `TrlParser` reads them.

    Raises:
        RewindError: an unknown key or a value that does not fit.
    """
    try:
        return tuple(TrlParser(list(types)).parse_args_and_config(argv))
    except (ValueError, TypeError, OSError) as error:
        raise RewindError(f"these arguments do not fit: {' '.join(str(error).split())}") from error


def settings_of(config: TrainingArguments) -> dict[str, Any]:
    """A training config for `run.json`, without the folder: a run may be resumed under another spelling of its path."""
    return {key: value for key, value in config.to_dict().items() if key != "output_dir"}


def lora_config(model_config: ModelConfig, targets: list[str]) -> LoraConfig:
    """The LoRA that a model config asks for, on `targets` unless it names its own.

    Raises:
        RewindError: full fine-tuning, which would break the one backbone that both roles stand on.
    """
    config = get_peft_config(model_config)
    if config is None:
        raise RewindError("both roles stand on one backbone as adapters: leave --use_peft true")
    if config.target_modules is None:
        config.target_modules = set(targets)
    return config
