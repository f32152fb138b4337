"""What the training scripts share: claim the run folder, train rounds that can be resumed, one process or many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainingArguments

from rl.data.left_out import LeftOut, for_resume, list_left_out
from rl.data.triplet_files import read_triplets
from rl.data.triplet_table import Triplets, joined
from rl.errors import RewindError
from rl.models.adapters import check_digests
from rl.models.digests import weights_for_resume
from rl.models.fingerprint import for_resume as base_for_resume
from rl.models.unified import UnifiedVLM
from rl.running.data_flags import reading
from rl.running.files import json_lines
from rl.running.run_folder import BY_CHECKPOINTS, claim
from trainers.common.adapters import save_adapter
from trainers.common.arguments import RunArguments, settings_of
from trainers.common.sharding import on_main, stage_asked_for
from trainers.common.tokens import OWN

ROUNDS_FILE = "rounds.jsonl"
SCHEDULE = (
    ", and the learning rate follows the schedule of the new number from the second step on, not the one it began with"
)
_SHOWN, _KEPT = "what is shown and logged changes, not what is learned", "what is kept changes, not what is learned"
_SPEED = "time and memory change, not what is learned"
_EVALUATED = "it is measured at other steps or in other portions, and the best checkpoint is chosen among those"
HARMLESS = {
    "rounds": "rounds that are finished stay as they are",
    **dict.fromkeys(("logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter"), _SHOWN),
    **dict.fromkeys(("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to"), _SHOWN),
    **dict.fromkeys(("run_name", "project", "profile", "include_num_input_tokens_seen", "log_completions"), _SHOWN),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _SHOWN),
    **dict.fromkeys(("save_steps", "save_strategy", "save_total_limit", "save_only_model", "save_on_each_node"), _KEPT),
    **dict.fromkeys(("enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"), _KEPT),
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), _KEPT),
    **dict.fromkeys(("eval_steps", "per_device_eval_batch_size", "eval_accumulation_steps"), _EVALUATED),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"), _SPEED),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_timeout"), _SPEED),
    **dict.fromkeys(("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"), _SPEED),
    **dict.fromkeys(("activation_checkpointing", "activation_checkpointing_kwargs"), _SPEED),  # its new name
    **dict.fromkeys(("skip_memory_metrics", "max_rows"), _SPEED),
    "token_cache": "codes lie elsewhere; they are the same",
    "ddp_backend": "processes talk in another way; how many they are is compared by itself",
}
"""Arguments that may differ when a run is resumed, and what that means: the steps that are left stay as they were.
`harmless` adds the number of steps itself.
"""


def read_files(
    arguments: RunArguments,
    files: Sequence[str],
    left_out: list[LeftOut],
    *,
    limit: int | None = None,
    with_targets: bool = False,
    named: bool = True,
) -> Triplets:
    """The triplets of files, as the flags about data say; what is left out is added to `left_out`. If not `named`, a
    pair without words is one too.
    """
    how = {"named": named, "with_targets": with_targets, "left_out": left_out, **reading(arguments)}
    return joined([read_triplets(file, limit, **how) for file in files])


def begin_run(
    script: str,
    arguments: RunArguments,
    config: TrainingArguments,
    inputs: Sequence[str | None],
    left_out: Sequence[LeftOut] = (),
    *,
    vlm: UnifiedVLM | None = None,
    **more: Any,
) -> Path:
    """Claim `--output_dir` once for all processes, list in it what is left out of the data, point TensorBoard into it.

    A run that is resumed goes on with a base of the same weights as those of `vlm`, wherever that lies now.

    Raises:
        RewindError: the folder cannot be claimed, or a DeepSpeed config with options that cannot be used.
    """
    stage_asked_for()
    folder = Path(str(config.output_dir))
    data = [file for name in ("triplets", "synthetic", "validation") for file in getattr(arguments, name, [])]
    values = {**asdict(arguments), "training": settings_of(config), **more, **for_resume(left_out, data), **processes()}
    values |= base_for_resume(None if vlm is None else vlm.fingerprint)
    values |= weights_for_resume(**_asked(arguments))

    def take() -> Path:
        claimed = claim(
            folder,
            script,
            values,
            inputs=inputs,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            resume_flag=BY_CHECKPOINTS,
            harmless=harmless(config),
            scratch=(OWN, *(_first_rollout(folder) if script == "train_grpo.py" else ())),
        )
        list_left_out(claimed, left_out)
        return claimed

    output = on_main(take)
    _log_to(output / "tensorboard")
    return output


def _asked(arguments: RunArguments) -> dict[str, str | None]:
    """The models that judge in a run, by their arguments' names."""
    names = ["idm", "judge_idm"] if getattr(arguments, "role", "fdm") == "fdm" else ["fdm", "judge_idm"]
    return {name: getattr(arguments, name, None) for name in names}


def processes() -> dict[str, int]:
    """How many processes share the batches, if there are several: with another number a step sees other rows."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return {"num_processes": count} if count > 1 else {}


def harmless(config: TrainingArguments) -> dict[str, str]:
    """Arguments that may differ when a run is resumed, and what the difference means."""
    constant = str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)).startswith("constant")
    length = "it trains for longer or shorter" + ("" if constant else SCHEDULE)
    return {**HARMLESS, "max_steps": length, "num_train_epochs": length}


def _first_rollout(folder: Path) -> tuple[str, ...]:
    """What GRPO writes before its first step is finished; candidates of several steps are no such thing."""
    steps: set[int] = set()
    with suppress(OSError):  # `claim` says what is wrong with the place
        for part in sorted((folder / "candidates").glob("part-*.parquet")):
            with suppress(pa.ArrowException):  # a damaged part
                steps |= {*pq.read_table(part, columns=["step"])["step"].to_pylist()}
            if len(steps) > 1:
                return ("monitors.json",)
    return ("monitors.json", "candidates", "sentences", "start_sentences.json")


def check_output(config: TrainingArguments) -> None:
    """Raise a `RewindError` unless a run folder is given."""
    if config.output_dir is None:
        raise RewindError("give a folder for the run: --output_dir runs/my-run")


def check_rounds(rounds: int) -> None:
    """Raise a `RewindError` unless so many rounds can be run."""
    if rounds < 1:
        raise RewindError(f"--rounds must be at least 1, not {rounds}")
    if rounds > 1 and stage_asked_for() == 3:
        raise RewindError(
            "ZeRO-3 leaves the weights divided after a round, and the next one samples from them: use --rounds 1, or "
            "configs/accelerate/zero2.yaml"
        )


def rounds_left(vlm: UnifiedVLM, output: Path, rounds: int) -> Iterator[tuple[int, Path]]:
    """Number and folder of each round that is not finished; the policy goes on from the last finished one.

    Every round counts its steps from 0, so each logs to a folder of its own, `output/tensorboard/round-N`.
    """
    done = on_main(lambda: _finished(output))
    if done:
        adapter = output / f"round-{done - 1}" / "adapter"
        check_digests(adapter)
        weights = load_file(adapter / "adapter_model.safetensors")
        set_peft_model_state_dict(vlm.model, weights, adapter_name="default")
    for number in range(done, rounds):
        folder = output / f"round-{number}"
        on_main(lambda folder=folder: folder.mkdir(exist_ok=True))  # type: ignore[misc]
        _log_to(output / "tensorboard" / folder.name)
        yield number, folder


def finish_round(
    vlm: UnifiedVLM, output: Path, number: int, figures: dict[str, Any], report_to: Sequence[str] | str | None = ()
) -> None:
    """Keep the policy of a finished round and its figures, in TensorBoard too (`rounds`) where that is reported to."""
    save_adapter(vlm, output / f"round-{number}", role="fdm")

    def note() -> None:
        with (output / ROUNDS_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"round": number, **figures}) + "\n")
        if "tensorboard" in (report_to or ()):
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(str(output / "tensorboard" / "rounds")) as writer:
                for name, value in figures.items():
                    writer.add_scalar(f"rounds/{name}", value, number)

    on_main(note)


def _log_to(folder: Path) -> None:
    """Where the next trainer's TensorBoard events go (transformers' `TensorBoardCallback` reads it when it is made)."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)


def _finished(output: Path) -> int:
    """How many rounds stand in the log of rounds; a torn last line is cut off."""
    return len(json_lines(output / ROUNDS_FILE))
