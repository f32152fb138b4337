"""Arguments of the training scripts in TRL's habits: script arguments, TRL's config, TRL's model config."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
from transformers import TrainingArguments
from trl import TrlParser

from rewards.mix import resolve
from rl.errors import RewindError
from rl.paths import expanded
from rl.running.command_line import check_flags, read_yaml, unknown_key
from rl.running.data_flags import CACHE_HELP, HELP
from rl.running.model_flags import ROWS_HELP, SIZE_HELP, check_max_rows
from trainers.common.sharding import as_launched, one_gpu, without_compiler

VQ_HELP = "a folder or Hub id with the VQ image tokenizer, where the checkpoint lacks a part"


@dataclass
class RunArguments:
    """What every training script has."""

    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint in --output_dir"})
    overwrite: bool = field(default=False, metadata={"help": "replace what an earlier run left in --output_dir"})
    image_root: str | None = field(default=None, metadata={"help": HELP["image_root"]})
    strict: bool = field(default=False, metadata={"help": HELP["strict"]})
    format: str | None = field(default=None, metadata={"help": HELP["format"]})
    columns: list[str] = field(default_factory=list, metadata={"help": HELP["columns"]})
    data_split: str | None = field(default=None, metadata={"help": HELP["data_split"]})
    check_pictures: str | None = field(default=None, metadata={"help": HELP["check_pictures"]})
    max_rows: int | None = field(default=None, metadata={"help": ROWS_HELP})
    token_cache: str | None = field(default=None, metadata={"help": CACHE_HELP})

    def __post_init__(self) -> None:
        check_max_rows(self.max_rows)
        for one in fields(self):  # a text is a list of one, not of its letters
            is_list = one.default_factory is not MISSING and isinstance(one.default_factory(), list)
            if is_list and isinstance(getattr(self, one.name), str):
                setattr(self, one.name, [getattr(self, one.name)])


@dataclass
class ImproveArguments(RunArguments):
    """What the scripts have that improve a forward model by rewards."""

    fdm: str | None = field(default=None, metadata={"help": "run folder of the forward model to improve"})
    idm: str | None = field(default=None, metadata={"help": "run folder of the inverse model that the rewards ask"})
    triplets: list[str] = field(
        default_factory=list, metadata={"help": "data sets (docs/guide/data.md): sources and actions to try"}
    )
    base: str | None = field(
        default=None, metadata={"help": "the base of the runs, where the one that they name has been moved"}
    )
    vq: str | None = field(default=None, metadata={"help": VQ_HELP})
    dtype: str | None = field(
        default=None, metadata={"help": "of the base's weights: auto, float32, bfloat16 or float16 (default: its own)"}
    )
    image_size: str | None = field(default=None, metadata={"help": SIZE_HELP})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})
    quantization: str | None = field(default=None, metadata={"help": "4bit or 8bit, through bitsandbytes"})
    rewards: list[str] = field(
        default_factory=lambda: ["idm_margin=1.0", "keep_unchanged=0.25"],
        metadata={
            "help": "built-in names, file.py:function or package.module:function, each with =WEIGHT; or 'fitted'"
        },
    )
    reward_arguments: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'by reward, JSON on the command line: \'{"keep_unchanged": {"default": 3}}\''}
    )
    normalise_rewards: bool = field(
        default=False, metadata={"help": "measure each reward in its group's standard deviations before summing"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first triplets of each file"})

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve(self, to_train=True)

    def opening(self) -> dict[str, Any]:
        """How the models are opened, as arguments of `load_fdm`."""
        names = ("base", "vq", "image_size", "dtype", "attn_implementation", "quantization", "max_rows")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass
class DrawArguments(ImproveArguments):
    """What methods have that learn from rounds of candidates, drawn and scored before each."""

    num_candidates: int = field(default=8, metadata={"help": "N, candidates a source and action"})
    candidates: list[str] = field(
        default_factory=list,
        metadata={"help": "run folders, or their candidates, to train on instead of --triplets and drawing"},
    )
    rounds: int = field(default=1, metadata={"help": "rounds of drawing and training, each on fresh candidates"})
    temperature: float = field(default=1.0, metadata={"help": "of the candidates"})


A_DAY = 86_400
WAIT_HELP = (
    "seconds that a process waits for the others. Candidates are drawn between two meetings, for hours if they are "
    "many, and a process that dies ends the launch without it"
)


class StartsAnywhere:
    """For TRL's configs: start, in one process or in several, where there is no GPU too."""

    def __post_init__(self) -> None:
        config: Any = self
        config.output_dir = None if config.output_dir is None else str(expanded(config.output_dir))
        as_launched(config)
        if not torch.cuda.is_available():
            config.use_cpu = True
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                config.ddp_backend = config.ddp_backend or "gloo"  # else accelerate believes in one process
            config.bf16 = bool(config.bf16)  # TRL's default is bfloat16, which most CPUs only emulate
            if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
                without_compiler()
        if config.activation_checkpointing is None:  # TRL 1.16 still says it by the old name, of which users are warned
            config.activation_checkpointing = config.gradient_checkpointing
        super().__post_init__()  # type: ignore[misc]
        one_gpu(config)


def parse(types: Sequence[type[Any]], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Flags over the values of an optional `--config` YAML file, as `TrlParser` reads them.

    Raises:
        RewindError: an unknown flag or key, or a value that does not fit.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", type=Path)
    known, rest = own.parse_known_args(argv)
    parser = _Parser(list(types))
    flags = {action.dest for action in parser._actions}
    _not_ours([flag.partition("=")[0].removeprefix("--") for flag in rest if flag.startswith("--")], flags)
    check_flags(parser, rest)
    if known.config is not None:
        values = read_yaml(known.config)
        _not_ours(list(values), flags)
        _set_defaults(parser, values, known.config, _kinds(types))
    try:
        *found, left = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    except (ValueError, TypeError, OSError) as error:
        raise RewindError(f"these arguments do not fit: {' '.join(str(error).split())}") from error
    if left:
        raise RewindError(
            f"no flag takes '{' '.join(left)}': --help shows all, and a file of them is --config FILE.yaml"
        )
    return tuple(found)


def _not_ours(names: Sequence[str], known: Collection[str]) -> None:
    """Raise a `RewindError` for what other scripts have: what a launcher decides here, and full fine-tuning."""
    if "use_peft" in names and "use_peft" not in known:
        raise RewindError(
            "methods that learn from rewards train an adapter, beside which reference and inverse model cost next to "
            "nothing: leave --use_peft out (train_fdm.py and train_idm.py have it)"
        )
    if "compile" in names:
        raise RewindError(
            "a training run draws without torch.compile, since what it draws with changes at every step: leave "
            "--compile out (sample.py, rerank.py, label.py and evaluate.py have it)"
        )
    for name in ("device", "device_map"):
        if name in names:
            raise RewindError(
                "where a model is trained, the launcher places the weights (accelerate launch, torchrun; "
                f"CUDA_VISIBLE_DEVICES for one GPU): leave --{name} out"
            )


class _Parser(TrlParser):  # type: ignore[misc]
    """Says what is wrong in a sentence, without the two hundred flags of its usage."""

    def error(self, message: str) -> NoReturn:
        raise RewindError(f"these arguments do not fit: {message}")


def _kinds(types: Sequence[type[Any]]) -> dict[str, type[Any]]:
    """Arguments that are one whole number, number or text, or nothing, by name."""
    known = {f"{kind.__name__}{rest}": kind for kind in (int, float, str) for rest in ("", " | None")}
    hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}  # the parser rewrites `type`
    told = {name: getattr(hint, "__name__", str(hint)) for name, hint in hints.items()}
    return {name: known[text] for name, text in told.items() if text in known}


def _set_defaults(
    parser: argparse.ArgumentParser, values: dict[str, Any], file: Path, kinds: Mapping[str, type[Any]]
) -> None:
    """Take what a YAML file holds for what no flag says; `env` are variables of the environment, as in TRL."""
    variables = values.pop("env", None) or {}
    if not isinstance(variables, dict):
        raise RewindError(f"{file}: 'env' must be a mapping of variables to values, not {variables!r}")
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    for key, value in values.items():
        if key not in actions:
            raise RewindError(unknown_key(file, str(key), list(actions)))
        action = actions[key]
        if action.nargs == "+":  # a list
            if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value)):
                raise RewindError(f"{file}: '{key}' is a list of values, with NAME=VALUE where one has a name")
            value = value if isinstance(value, list) or value is None else [value]
            value = action.default if value is None else value  # an empty value is the flag's default
        _check_value(action, value, file, kinds.get(key))
        parser.set_defaults(**{key: value})
        action.required = False
    os.environ.update({key: str(value) for key, value in variables.items()})


def _check_value(action: argparse.Action, value: Any, file: Path, kind: type[Any] | None) -> None:
    """Raise a `RewindError` for what the flag would not take; argparse itself looks at flags alone."""
    known = [str(getattr(one, "value", one)) for one in action.choices or ()]
    if value is None or value == action.default or (isinstance(value, dict) and not known and kind is None):
        return
    if known and str(getattr(value, "value", value)) not in known:
        raise RewindError(f"{file}: '{action.dest}' is one of {', '.join(known)}, not {value!r}")
    if kind is str and isinstance(value, list | dict):
        raise RewindError(f"{file}: '{action.dest}' takes one value, not {value!r}")
    if kind not in (int, float):
        return
    try:
        if isinstance(value, bool):  # which Python takes for a number
            raise ValueError
        kind(str(value))
    except ValueError:
        raise RewindError(
            f"{file}: '{action.dest}' is a {'whole ' if kind is int else ''}number, not {value!r}"
        ) from None


def settings_of(config: TrainingArguments) -> dict[str, Any]:
    """A training config for `run.json`, without the folder: a run may be resumed under another spelling of its path."""
    return {key: value for key, value in config.to_dict().items() if key != "output_dir"}
