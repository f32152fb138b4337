"""Several processes: what DistributedDataParallel and DeepSpeed's ZeRO (arXiv 1910.02054) ask of our trainers.

The launcher's config says how a run is sharded (`configs/accelerate/`). Here: weights are loaded whole before they are
divided, files are written by one process, a rollout gathers divided weights once, and a run stops where the sharding
that was asked for is not the one that runs.

Seams of deepspeed 0.19, transformers 5.23 and accelerate 1.15 that it touches: `deepspeed.ops.__compatible_ops__`,
`transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref`, and accelerate's environment variables.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from os import environ
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.models import unwrap_model_for_generation

from rl.errors import RewindError
from rl.models.memory import free_memory
from rl.models.unified import UnifiedVLM

Result = TypeVar("Result")
logger = logging.getLogger("rl")


def without_compiler() -> None:
    """Keep DeepSpeed from building its shared-memory extension, which costs a minute and needs a compiler.

    Only where there is no GPU: gloo then carries everything.
    """
    import deepspeed.ops

    # deepspeed 0.19 calls collectives by names that torch 2.13 deprecates, and torch says so at every call.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def as_launched(config: Any) -> None:
    """Take `--deepspeed FILE.json` as `accelerate launch` would pass it on, so that a run is the same either way.

    transformers' own way names no backend, so that without a GPU accelerate believes in one process, and our checks,
    which read what the launcher says, would not know of it.

    Raises:
        RewindError: no launcher, another file named by the launcher, or no such JSON file.
    """
    asked = config.deepspeed
    if not asked:
        return
    named = environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    by_launcher = environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not isinstance(asked, str) or not asked.endswith(".json") or not Path(asked).is_file():
        raise RewindError(
            f"--deepspeed takes a JSON file that is there, e.g. configs/accelerate/zero3.json, not {asked}"
        )
    if by_launcher and Path(named).resolve() != Path(asked).resolve():
        raise RewindError(
            f"the launcher's config asks for DeepSpeed too ({named or 'without a file'}): leave --deepspeed out"
        )
    if "WORLD_SIZE" not in environ:
        raise RewindError(
            f"--deepspeed {asked} needs a launcher: torchrun --nproc_per_node 2 SCRIPT ..., or accelerate launch "
            "--config_file configs/accelerate/zero2.yaml SCRIPT ... without --deepspeed"
        )
    environ["ACCELERATE_USE_DEEPSPEED"], environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = "true", asked
    environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"  # as in configs/accelerate: weights are loaded whole
    config.deepspeed = None


def one_gpu(config: TrainingArguments) -> None:
    """Train on the first GPU where no launcher has started a process for each.

    transformers would wrap the model as DataParallel, whose copies lack the forward that answers with our scores.
    """
    if config.n_gpu < 2:
        return
    count, config._n_gpu = config.n_gpu, 1
    _say_one_gpu(count)


@cache
def _say_one_gpu(count: int) -> None:
    logger.warning(
        "one of %d GPUs is used, since no launcher started the script: for all of them, accelerate launch "
        "--config_file configs/accelerate/zero2.yaml --num_processes %d scripts/...",
        *(count, count),
    )


@contextmanager
def whole_weights() -> Iterator[None]:
    """Load weights whole in every process, even where ZeRO-3 would divide them while they are read.

    Pictures are encoded and adapters are put on before the trainer divides the weights. An inverse model with a base of
    its own is never divided.
    """
    from transformers.integrations import deepspeed as seam

    kept = seam._hf_deepspeed_config_weak_ref
    seam._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        seam._hf_deepspeed_config_weak_ref = kept


def on_main(make: Callable[[], Result]) -> Result:
    """Let the main process alone do something with files; every process gets its result, or stops where it failed.

    Raises:
        RewindError: what the main process raised; the others exit without a word.
    """
    state = PartialState()
    if state.num_processes == 1:
        return make()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = make()
        except RewindError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        if state.is_main_process:
            raise RewindError(outcome[1])
        sys.exit(2)
    result: Result = outcome[0]
    return result


def release(trainer: Trainer) -> None:
    """Let go of what wrapped a model in training that another trainer is to train next.

    DeepSpeed puts hooks on the module that hold its engine, and by them the engine's optimizer and its hooks on every
    weight: left there, the next round's gradients are reduced by both.
    """
    engine: Any = trainer.model_wrapped
    trainer.accelerator.free_memory()  # destroys DeepSpeed's engine
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        hook = getattr(engine, name, None)
        if hook is not None:
            hook.remove()
    trainer.model_wrapped = trainer.model
    vars(trainer)["deepspeed"] = None  # transformers' second name for it
    del engine
    free_memory()


def tell(sentence: str, *values: Any) -> None:
    """Say something once: the main process's word for all."""
    if PartialState().is_main_process:
        logger.warning(sentence, *values)


def zero_stage(trainer: Trainer) -> int:
    """The stage of ZeRO that the launcher's config asks for; 0 without DeepSpeed."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return int(plugin.zero_stage) if plugin is not None else 0


def stage_asked_for() -> int:
    """The stage of ZeRO that the launcher's config asks for, before any trainer is there; 0 without DeepSpeed.

    Raises:
        RewindError: options that our trainers cannot use.
    """
    if environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return 0
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    wrong = unsupported(plugin.deepspeed_config)
    if wrong is not None:
        raise RewindError(f"the DeepSpeed config {wrong}; configs/accelerate/ has files that fit")
    return int(plugin.zero_stage)


def unsupported(config: dict[str, Any]) -> str | None:
    """What a DeepSpeed config asks for that our trainers cannot use, in words that go on 'the DeepSpeed config ...'."""
    zero = config.get("zero_optimization", {})
    offloaded = {key: zero.get(key, {}).get("device", "none") for key in ("offload_param", "offload_optimizer")}
    if "optimizer" in config or "scheduler" in config:
        return "has an 'optimizer' or 'scheduler' of its own: leave them to the script's arguments"
    if "nvme" in offloaded.values():
        return "offloads to 'nvme', which needs a compiled extension: offload to 'cpu'"
    if offloaded["offload_optimizer"] == "cpu" and config.get("zero_force_ds_cpu_optimizer", True):
        return (
            "offloads the optimizer with DeepSpeed's own, which is compiled: set 'zero_force_ds_cpu_optimizer': false"
        )
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        return "would save no weights under ZeRO-3: set 'stage3_gather_16bit_weights_on_model_save': true"
    return None


def keep_head_whole(trainer: Trainer, vlm: UnifiedVLM) -> None:
    """Under ZeRO-3, give the model a copy of its output head, which is read as a matrix and not by its module.

    A frozen head stays what it is, so a copy made before the weights are divided stays right. One that is trained is
    gathered with the whole model's forward and backward pass instead.
    """
    if zero_stage(trainer) != 3:
        return
    head = vlm.head_weight()
    if head.requires_grad:
        import deepspeed

        deepspeed.zero.register_external_parameter(trainer.model, head)
    else:
        half = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None
        vlm.keep_head(trainer.accelerator.device, half)


@contextmanager
def gathered(trainer: Trainer) -> Iterator[None]:
    """All weights whole on every process for a while: once for a rollout and its rewards, not once a token."""
    if zero_stage(trainer) < 3 or trainer.model_wrapped is trainer.model:
        yield
        return
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator):
        yield


@contextmanager
def gathered_adapter(model: nn.Module) -> Iterator[None]:
    """The trainable weights whole on every process, to be saved or looked at."""
    divided = [p for p in model.parameters() if p.requires_grad and hasattr(p, "ds_id")]
    if divided:
        import deepspeed

        context: Any = deepspeed.zero.GatheredParameters(divided)
    else:
        context = nullcontext()
    with context:
        yield


class ShardingCheck(TrainerCallback):
    """Stops a run whose wrapped model is not the engine, the stage and the number of processes that were asked for.

    accelerate runs on without a word in several such cases (see docs/guide/scaling.md), so nothing else would say so.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        check_sharding(self.trainer)


def check_sharding(trainer: Trainer) -> None:
    """Compare how a trainer's model is wrapped with what the launcher was asked for.

    Raises:
        RewindError: DeepSpeed or FSDP was asked for and something else would run; several processes that do not
            exchange gradients; names the setting.
    """
    asked, wrapped = int(environ.get("WORLD_SIZE", "1")), trainer.model_wrapped
    running = trainer.accelerator.num_processes
    kind = type(wrapped).__name__
    if asked != running:
        raise RewindError(
            f"the launcher started {asked} processes and each believes that there are {running}: leave 'ddp_backend' "
            "and 'use_cpu' to the script"
        )
    if environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RewindError(
            "the launcher's config asks for FSDP ('distributed_type: FSDP'), which is not supported: take one of "
            "configs/accelerate/zero2.yaml or zero3.yaml"
        )
    if environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        if kind != "DeepSpeedEngine":
            raise RewindError(
                f"the launcher's config asks for DeepSpeed and the model is wrapped as {kind}: is ACCELERATE_USE_CPU "
                "set, or 'use_cpu: true' in the environment? Unset it"
            )
        stage, wanted = int(wrapped.zero_optimization_stage()), zero_stage(trainer)
        if stage != wanted or int(wrapped.world_size) != asked:
            raise RewindError(
                f"the launcher's config asks for ZeRO-{wanted} on {asked} processes and ZeRO-{stage} on "
                f"{int(wrapped.world_size)} runs: look at 'zero_optimization' in its DeepSpeed file"
            )
    elif running > 1 and kind != "DistributedDataParallel":
        raise RewindError(
            f"{running} processes run and the model is wrapped as {kind}, so that they would not exchange gradients: "
            "use configs/accelerate/ddp.yaml or zero2.yaml"
        )
