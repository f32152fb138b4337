"""What `scripts/train_idm.py` and `scripts/train_fdm.py` do: triplets in, a run folder with an adapter out."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset, interleave_datasets
from transformers import set_seed
from trl import ModelConfig, SFTConfig

from rl.data.importance import Importance
from rl.data.triplets_io import read_triplets
from rl.errors import RewindError
from rl.models.bases import load_base
from rl.triplets import Triplet
from trainers.arguments import FDMArguments, IDMArguments, lora_config
from trainers.checkpoints import fit
from trainers.pretraining import MetricsFile
from trainers.sft import LINEAR_LAYERS, Role, RoleSFTTrainer, add_adapter, role_rows, save_adapter
from trainers.sharding import whole_weights
from trainers.training_run import begin_run, check_output

logger = logging.getLogger("rl")


def mixed(rows: Dataset, labelled: int, share: float, seed: int) -> Dataset:
    """Rows of which `share` are from behind the first `labelled`; the smaller part is repeated until all are used.

    Raises:
        RewindError: a share that is not between 0 and 1, or nothing to mix in.
    """
    if not 0 < share < 1:
        raise RewindError(f"--synthetic_share must lie between 0 and 1, not be {share}")
    if labelled == len(rows):
        raise RewindError("--synthetic_share needs something to mix in: give --synthetic")
    parts = [rows.select(range(labelled)), rows.select(range(labelled, len(rows)))]
    return interleave_datasets(parts, [1 - share, share], seed=seed, stopping_strategy="all_exhausted")


def train_role(role: Role, arguments: IDMArguments, config: SFTConfig, model_config: ModelConfig) -> Path:
    """Train one role on files of triplets; returns the run folder, which `load_fdm` or `load_idm` opens."""
    files = [*arguments.triplets, *getattr(arguments, "synthetic", [])]
    if not arguments.triplets:
        raise RewindError("give at least one file of triplets: --triplets data/triplets.json")
    check_output(config)
    lora, importance = lora_config(model_config, LINEAR_LAYERS), None
    if isinstance(arguments, FDMArguments) and arguments.token_weights:
        settings: Any = arguments.importance_normalise
        importance = Importance(settings, arguments.importance_floor, arguments.importance_cap)
    triplets: list[Triplet] = []
    labelled = 0
    for file in files:
        triplets += read_triplets(Path(file), arguments.limit)
        labelled = len(triplets) if file in arguments.triplets else labelled
    set_seed(config.seed)  # before the adapter is drawn
    with whole_weights():
        vlm = load_base(arguments.base)
        rows = role_rows(vlm, role, triplets, importance)
        if isinstance(arguments, FDMArguments) and arguments.synthetic_share is not None:
            rows = mixed(rows, labelled, arguments.synthetic_share, config.seed)
        script = f"train_{role}.py"
        output = begin_run(script, arguments, config, [arguments.base, *files], model=asdict(model_config))
        add_adapter(vlm, lora)
    trainer = RoleSFTTrainer(
        vlm,
        role,
        config,
        rows,
        use_weights=importance is not None,
        callbacks=[MetricsFile(output / "metrics.jsonl")],
    )
    fit(trainer, output, arguments.resume)
    folder = save_adapter(vlm, output)
    logger.warning("%d triplets, %d steps; the adapter is in %s", len(triplets), trainer.state.global_step, folder)
    return output
