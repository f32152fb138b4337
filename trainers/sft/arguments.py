"""Arguments of `train_idm.py` and `train_fdm.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig

from rl.errors import RewindError
from rl.models.settings import Settings
from rl.running.model_flags import SIZE_HELP
from trainers.common.arguments import A_DAY, VQ_HELP, WAIT_HELP, RunArguments, StartsAnywhere


@dataclass
class RoleArguments(RunArguments):
    """Arguments of `train_idm.py` and `train_fdm.py` beside TRL's."""

    base: str = field(default="tabletop-chameleon", metadata={"help": "a base by name, folder or Hub id"})
    vq: str | None = field(default=None, metadata={"help": VQ_HELP})
    image_size: str | None = field(default=None, metadata={"help": SIZE_HELP})
    triplets: list[str] = field(default_factory=list, metadata={"help": "data sets (docs/guide/data.md)"})
    validation: list[str] = field(
        default_factory=list,
        metadata={
            "help": "JSON lists of held-out triplets, evaluated on while training, with --eval_strategy epoch or steps"
        },
    )
    limit: int | None = field(default=None, metadata={"help": "only the first triplets of each file to train on"})
    action_ranges: str | None = field(
        default=None,
        metadata={
            "help": 'for actions that are vectors: a JSON file {"low": [...], "high": [...]} (default: what the '
            "numbers of the triplets span)"
        },
    )
    action_codec: str | None = field(
        default=None,
        metadata={
            "help": "for vectors in UniVLA's FAST tokens in place of bins: a folder or Hub id with the codec, e.g. "
            'physical-intelligence/fast; --action_ranges then states "steps" too'
        },
    )


@dataclass
class IDMArguments(RoleArguments):
    """Arguments of `train_idm.py` beside TRL's."""

    propose: bool = field(
        default=False,
        metadata={
            "help": "learn what may be done with a picture in place of what was done: the source alone is shown. For "
            "propose_actions.py, whose prompts training by reward can try"
        },
    )


@dataclass
class FDMArguments(RoleArguments):
    """Arguments of `train_fdm.py` beside TRL's."""

    synthetic: list[str] = field(default_factory=list, metadata={"help": "IDM-labelled triplets, mixed in"})
    synthetic_share: float | None = field(
        default=None, metadata={"help": "share of --synthetic among what is drawn; all triplets alike if not given"}
    )
    token_weights: bool = field(
        default=False, metadata={"help": "weigh each image token by how much it changes (arXiv 2506.06006)"}
    )
    same_below: float | None = field(
        default=None,
        metadata={
            "help": "squared distance of code vectors up to which two tokens show the same, for rewards and measures "
            "of change; 0 is equality (default: found on the first 64 triplets)"
        },
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
class RoleConfig(StartsAnywhere, SFTConfig):
    """TRL's `SFTConfig` with the defaults of arXiv 2506.06006 for an IDM, which also start where there is no GPU."""

    learning_rate: float = field(default=2e-4, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type to use."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that transformers' parser can read)
        default="tensorboard", metadata={"help": "Where to report to."}
    )
    ddp_timeout: int = field(default=A_DAY, metadata={"help": WAIT_HELP})
    logging_steps: float = field(default=10, metadata={"help": "Log every X updates steps."})
    max_length: int | None = field(default=None, metadata={"help": "Not used: nothing is cut."})
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
    dtype: str = field(
        default="auto", metadata={"help": "of the base's weights: auto (its own), float32, bfloat16 or float16"}
    )

    def settings(self) -> Settings:
        """How the base is opened; its image tokenizer stays in float32.

        Raises:
            RewindError: a type that there is not, or bitsandbytes is missing.
        """
        quantization = "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else None
        return Settings(self.dtype, self.attn_implementation, quantization)
