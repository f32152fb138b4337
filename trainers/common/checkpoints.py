"""Checkpoints that are whole or not there: written, sealed with a digest of every file, and looked at before resuming.

A kill or a full disk may leave half a checkpoint. It has no seal, or one that does not fit, and the one before it is
used. transformers keeps the older checkpoints until the new one is sealed.

Seams of transformers 5.23 that it touches: `Trainer._save_checkpoint`, which writes a checkpoint and deletes old ones,
`Trainer._save` and `Trainer._load_from_checkpoint`, which write and read its weights, and
`Trainer._load_callback_state`, which gives callbacks back what a checkpoint holds of them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from rl.errors import RewindError
from rl.models.memory import memory_ended
from rl.models.roles import JUDGE_ADAPTER
from rl.running import seals
from trainers.common.epochs import OrderOfEpoch, StepsAsAsked, TellsTheEpoch
from trainers.common.sharding import gathered_adapter, on_main

logger = logging.getLogger("rl")
SEAL_FILE = "checkpoint.json"
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "latest")
"""Where a checkpoint keeps the optimizer's state; the last is DeepSpeed's, which names a folder."""


class KeepsPart:
    """A callback of which every process has a part that a checkpoint should hold, in files of its own."""

    def write_part(self, folder: Path) -> None:
        """Write this process's part into a checkpoint that is not sealed yet."""
        raise NotImplementedError

    def read_part(self, folder: Path) -> None:
        """Go on with the part that a checkpoint holds."""
        raise NotImplementedError


def _parts(trainer: Trainer) -> list[KeepsPart]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, KeepsPart)]


class WholeCheckpoints:
    """For a `Trainer`: seal a checkpoint when it is written, and only then delete older ones; its callbacks go on."""

    elsewhere: ClassVar[Collection[str]] = (JUDGE_ADAPTER,)
    """Adapters that a run opens by their own names: where they are not trained, no checkpoint has to hold them."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            for callback in _parts(trainer):
                callback.write_part(folder)
            trainer.accelerator.wait_for_everyone()  # each process has written its own part
            if trainer.args.should_save:
                seal(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            before = last_checkpoint(folder.parent)
            kept = f"{before} is whole: --resume goes on from it" if before else "there is no earlier one"
            raise RewindError(f"the checkpoint {folder} could not be written ({error}); {kept}") from error
        finally:
            trainer.args.save_total_limit = limit
        if trainer.args.should_save:
            best = trainer.state.best_model_checkpoint
            rotate_checkpoints(str(folder.parent), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model as transformers does it, with two things said that it leaves open.

        A model without adapters is written under its own names: those under which a family is published are not the
        names by which `Trainer` loads a checkpoint, and it goes on without what it misses. Adapters never bring the
        embeddings with them: else peft would ask the Hub, by the base's name, whether they are the base's. Those that a
        run opens by another name stay out (`elsewhere`).
        """
        model: Any = cast(Trainer, self).model
        told: dict[str, Any] = {"save_original_format": False}
        if hasattr(model, "peft_config"):
            trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
            left_out = {one for one in self.elsewhere if not any(f".{one}." in name for name in trained)}
            kept = [name for name in model.peft_config if name not in left_out]
            told = {"save_embedding_layers": False, "selected_adapters": kept}
        if hasattr(model, "save_pretrained"):  # an image tokenizer in training is a plain module
            model.save_pretrained = partial(model.save_pretrained, **told)
        try:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        finally:
            vars(model).pop("save_pretrained", None)

    def _get_train_sampler(self, *arguments: Any) -> Any:
        """TRL's sampler of groups, so that a resumed run goes on with the order of the epoch that it is in."""
        found = super()._get_train_sampler(*arguments)  # type: ignore[misc]
        if not isinstance(found, RepeatSampler) or not found.shuffle:
            return found
        counts = (found.mini_repeat_count, found.batch_size, found.repeat_count)
        return OrderOfEpoch(found.data_source, *counts, seed=found.seed)

    def _load_callback_state(self) -> None:
        """Give the callbacks that are there their counts back. transformers would, if it were asked to, put new ones
        in their places, which lack what ours were made with, and bring back the word that training should stop.
        """
        trainer: Any = self
        kept = trainer.state.stateful_callbacks
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                # What the checkpoint lacks is put there, since transformers expects it when it saves the next one.
                found = kept.setdefault(type(callback).__name__, callback.state())
                for name, value in found["attributes"].items():
                    setattr(callback, name, value)


def seal(folder: Path) -> None:
    """Write the digests of a checkpoint's files into it, in one move."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(SEAL_FILE)]
    seals.seal(folder / SEAL_FILE, files)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is as it was sealed."""
    return seals.damage(folder / SEAL_FILE)


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the last one first."""
    found = [p for p in output.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)


def last_checkpoint(output: Path) -> str | None:
    """The last whole checkpoint of a run; a damaged one is passed over and said."""
    for folder in checkpoints(output):
        wrong = damage(folder)
        if wrong is None:
            return str(folder)
        logger.warning("%s cannot be used (%s)", folder, wrong)
    return None


def fit(trainer: Trainer, output: Path, resume: bool, batch: str = "") -> None:
    """Train, from the last whole checkpoint in `output` if `resume` and there is one.

    `batch` is what to make smaller where memory ends and the script's name for it is not TRL's.

    Raises:
        RewindError: checkpoints that nothing can go on from; memory ended; training left weights that are no numbers.
    """
    checkpoint = on_main(lambda: _checkpoint_to_go_on_from(trainer.args, output)) if resume else None
    if resume:
        _continue_tensorboard(trainer, checkpoint)
    if checkpoint is not None:
        trainer.args.eval_on_start = False  # it was made when the run began, and would count against --early_stop
        trainer.add_callback(TellsTheEpoch())
        trainer.add_callback(StepsAsAsked())
        for callback in _parts(trainer):
            callback.read_part(Path(checkpoint))
    if checkpoint is None or not _was_the_last(trainer, Path(checkpoint)):
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except RuntimeError as error:
            if memory_ended(error):
                raise _out_of_memory(trainer, error, batch) from error
            raise
    with gathered_adapter(trainer.model):
        check_finite(trainer.model, output)


def _out_of_memory(trainer: Trainer, error: RuntimeError, batch: str) -> RewindError:
    """What would need less: a loss is not halved by itself, since a batch may be compared within itself (GRPO's is)."""
    args, ways = trainer.args, []
    learns = bool(trainer.model.training)  # type: ignore[union-attr]
    size = args.per_device_train_batch_size if learns else args.per_device_eval_batch_size
    if size > 1:
        keeps = ", with --gradient_accumulation_steps as many times larger for the same steps" if learns else ""
        named = batch or f"--per_device_{'train' if learns else 'eval'}_batch_size"
        now = f" ({size} now{'' if batch else keeps})" if named.startswith("-") else ""  # else it may be a part of that
        ways.append(f"a smaller {named}{now}")
    if not batch:
        ways += [] if args.activation_checkpointing or not learns else ["--activation_checkpointing true"]
        ways.append("more GPUs; scripts/plan.py says what fits")
    why, step = str(error).splitlines()[0].rstrip(". "), trainer.state.global_step + 1
    ways = ways or ["a smaller model or smaller pictures"]
    return RewindError(f"out of memory in training ({why}), step {step}: use {' or '.join(ways)}")


def _checkpoint_to_go_on_from(args: TrainingArguments, output: Path) -> str | None:
    """The last whole checkpoint; None if none was finished before the run was killed.

    Raises:
        RewindError: all that were finished are damaged, or the last holds weights alone and steps are left.
    """
    found = last_checkpoint(output)
    if found is None:
        if finished := [folder.name for folder in checkpoints(output) if (folder / SEAL_FILE).is_file()]:
            raise RewindError(
                f"all checkpoints of {output} are damaged ({', '.join(finished)}): put a copy of one back, or begin "
                "again with --overwrite"
            )
        if checkpoints(output):
            logger.warning("%s holds no finished checkpoint: the run begins with its first step", output)
        return None
    state = TrainerState.load_from_json(str(Path(found) / TRAINER_STATE_NAME))
    if not _has_ended(state, args) and not any((Path(found) / name).exists() for name in OPTIMIZER_FILES):
        raise RewindError(
            f"{found} holds weights alone (--save_only_model true), not the optimizer's state, so the run cannot go on "
            "as if it had not stopped: begin again with --overwrite (load_fdm and load_idm open the weights)"
        )
    return found


def _was_the_last(trainer: Trainer, checkpoint: Path) -> bool:
    """Whether a run was killed after its last step, or one that ended early; if so its weights are loaded: `Trainer`
    would go on.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if not _has_ended(state, trainer.args):
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    folder = Path(best) if best is not None else checkpoint
    # peft puts every adapter but `default` into a folder of its own
    places = {name: folder / ("" if name == "default" else name) for name in getattr(trainer.model, "peft_config", {})}
    files = {name: place / SAFETENSORS_WEIGHTS_NAME for name, place in places.items()}
    for name, file in files.items():
        if file.is_file():
            set_peft_model_state_dict(trainer.model, load_file(file), adapter_name=name)
    if not files:
        trainer._load_from_checkpoint(str(folder))
    trainer.state = state
    trainer._load_callback_state()
    return True


def _has_ended(state: TrainerState, args: TrainingArguments) -> bool:
    """Whether a checkpoint's run has no step left, of as many as it is asked for now, or lost its patience."""
    if _stopped_early(state):
        return True
    if args.max_steps > 0:
        return bool(state.global_step >= args.max_steps)
    return bool((state.epoch or 0) >= args.num_train_epochs - 1e-6)  # a sum of fractions


def _stopped_early(state: TrainerState) -> bool:
    """Whether an `EarlyStoppingCallback` had lost its patience. (That training should stop, which the state holds too,
    is also said in a checkpoint that transformers writes for SIGTERM, and from that one a run goes on.)
    """
    early = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    if early is None:
        return False
    waited: int = early["attributes"]["early_stopping_patience_counter"]
    return waited >= early["args"]["early_stopping_patience"]


def check_finite(model: Any, output: Path) -> None:
    """Raise if training left weights that are no numbers."""
    wrong = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if wrong:
        raise RewindError(
            f"training in {output} diverged: {len(wrong)} weights are not finite, e.g. '{wrong[0]}'; start again with "
            "--overwrite and a smaller learning rate"
        )


def _continue_tensorboard(trainer: Trainer, checkpoint: str | None) -> None:
    """Let TensorBoard drop what a killed run logged after its last checkpoint: those steps are run again."""
    from torch.utils.tensorboard import SummaryWriter

    step = int(checkpoint.rpartition("-")[2]) if checkpoint is not None else 0
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and trainer.is_world_process_zero():
            callback.tb_writer = SummaryWriter(callback.logging_dir, purge_step=step + 1)
