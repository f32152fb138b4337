"""One supervised stage of the main job: an adapter trained and kept in a run folder of its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rl.models.roles import Role
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.checkpoints import fit
from trainers.common.metrics import MetricsFile, show_quietly
from trainers.sft.arguments import RoleConfig
from trainers.sft.trainer import RoleSFTTrainer
from trainers.studies.demo.story import Story

PROPOSER = "proposer"
"""The adapter that says what may be done with a picture: it is trained as an inverse model is, and is none."""
LORA_ALPHA = 4
"""alpha of every adapter as a multiple of its rank."""


def fit_adapter(
    story: Story,
    folder: str,
    adapter: str,
    role: Role,
    rows: Any,
    steps: int,
    learning_rate: float,
    part: str | None = None,
) -> None:
    """Train an adapter that is on the backbone by SFT and save it in a fresh folder of the run.

    With `part` the folder stands already, and what the training says of itself goes into one of that name in it.
    """
    only_policy_trains(story.vlm, adapter)
    run = stage_folder(story, folder) if part is None else story.output / folder
    place = run if part is None else run / part
    place.mkdir(exist_ok=True)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(place / "tensorboard")
    config = RoleConfig(
        output_dir=str(place),
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        per_device_train_batch_size=story.budget.idm_batch_size if role == "idm" else story.budget.fdm_batch_size,
        warmup_steps=max(1, steps // 20),
        save_strategy="no",
        activation_checkpointing=False,
        seed=story.seed,
    )
    weighted, log = "weights" in rows.column_names, MetricsFile(place / "metrics.jsonl")
    trainer = RoleSFTTrainer(story.vlm, role, config, rows, use_weights=weighted, callbacks=[log])
    show_quietly(trainer)
    fit(trainer, place, resume=False, batch=f"{role}_batch_size of the budget")
    save_adapter(story.vlm, run, adapter, role="proposer" if adapter == PROPOSER else role)


def stage_folder(story: Story, name: str) -> Path:
    """A fresh folder for a stage's run; what an interrupted attempt left in it goes."""
    run = story.output / name
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    about = {"script": "demo.py", "stage": name, "config": {"seed": story.seed, **story.budget.told()}}
    (run / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / "tensorboard")
    return run
