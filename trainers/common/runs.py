"""What the training scripts share: claim the run folder, train rounds that can be resumed, one process or many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainingArguments

from rl.errors import RewindError
from rl.models.unified import UnifiedVLM
from rl.running.files import json_lines
from rl.running.run_folder import claim
from trainers.common.adapters import save_adapter
from trainers.common.arguments import RunArguments, settings_of
from trainers.common.sharding import on_main, stage_asked_for

ROUNDS_FILE = "rounds.jsonl"


def begin_run(
    script: str, arguments: RunArguments, config: TrainingArguments, inputs: Sequence[str | None], **more: Any
) -> Path:
    """Claim `--output_dir` once for all processes, and point TensorBoard into it.

    Raises:
        RewindError: the folder cannot be claimed, or a DeepSpeed config with options that cannot be used.
    """
    stage_asked_for()
    folder = Path(str(config.output_dir))
    values = {**asdict(arguments), "training": settings_of(config), **more}

    def take() -> Path:
        return claim(folder, script, values, inputs=inputs, resume=arguments.resume, overwrite=arguments.overwrite)

    output = on_main(take)
    _log_to(output / "tensorboard")
    return output


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
        weights = load_file(output / f"round-{done - 1}" / "adapter" / "adapter_model.safetensors")
        set_peft_model_state_dict(vlm.model, weights, adapter_name="default")
    for number in range(done, rounds):
        folder = output / f"round-{number}"
        on_main(lambda folder=folder: folder.mkdir(exist_ok=True))  # type: ignore[misc]
        _log_to(output / "tensorboard" / folder.name)
        yield number, folder


def finish_round(vlm: UnifiedVLM, output: Path, number: int, figures: dict[str, Any]) -> None:
    """Keep the policy of a finished round and its figures."""
    save_adapter(vlm, output / f"round-{number}", role="fdm")

    def note() -> None:
        with (output / ROUNDS_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"round": number, **figures}) + "\n")

    on_main(note)


def _log_to(folder: Path) -> None:
    """Where the next trainer's TensorBoard events go (transformers' `TensorBoardCallback` reads it when it is made)."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)


def _finished(output: Path) -> int:
    """How many rounds stand in the log of rounds; a torn last line is cut off."""
    return len(json_lines(output / ROUNDS_FILE))
