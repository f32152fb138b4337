"""What `scripts/train_dpo.py` does: rounds of drawing, pairing and preference training."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from transformers import set_seed
from trl import DPOConfig

from rl.errors import RewindError
from rl.run_folder import claim
from trainers.arguments import DPOArguments, settings_of
from trainers.best_of_n import scored_groups
from trainers.dpo import REFERENCE, Pairing, WorldModelDPOTrainer, preference_rows
from trainers.grpo_recipe import only_policy_trains, open_for_improvement
from trainers.pretraining import MetricsFile, check_finite, require_one_process
from trainers.sft import save_adapter

logger = logging.getLogger("rl")


def train_dpo(arguments: DPOArguments, config: DPOConfig) -> Path:
    """Improve a forward model by preferences between its own candidates; returns the run folder."""
    require_one_process("train_dpo.py")
    if config.output_dir is None:
        raise RewindError("give a folder for the run: --output_dir runs/my-run")
    if arguments.rounds < 1:
        raise RewindError(f"--rounds must be at least 1, not {arguments.rounds}")
    if arguments.resume:
        raise RewindError("a run of train_dpo.py cannot be resumed yet: begin again with --overwrite true")
    pairing = Pairing(arguments.num_candidates, arguments.min_gap)
    set_seed(config.seed)
    fdm, _, triplets, rewards = open_for_improvement(arguments)
    vlm = fdm.backbone
    output = claim(
        Path(config.output_dir),
        "train_dpo.py",
        {**asdict(arguments), "training": settings_of(config)},
        inputs=[arguments.fdm, arguments.idm, *arguments.triplets],
        overwrite=arguments.overwrite,
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    for number in range(arguments.rounds):
        groups = list(
            scored_groups(
                fdm,
                rewards,
                triplets,
                pairing.num_candidates,
                temperature=arguments.temperature,
                seed=config.seed,
                step=number,
            )
        )
        pairs = [pair for triplet, group in groups if (pair := pairing.pair(triplet, group)) is not None]
        totals = [s.total for _, group in groups for s in group if s.total is not None]
        if not totals:
            raise RewindError(f"round {number}: no candidate could be scored")
        mean = sum(totals) / len(totals)
        with (output / "rounds.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"round": number, "sampled_total": mean, "pairs": len(pairs)}) + "\n")
        logger.warning("round %d: mean total %.4f, %d pairs of %d groups", number, mean, len(pairs), len(groups))
        rows = preference_rows(vlm, pairs)
        folder = output / f"round-{number}"
        folder.mkdir()
        config.output_dir = str(folder)
        only_policy_trains(vlm)
        trainer = WorldModelDPOTrainer(vlm, config, rows, callbacks=[MetricsFile(folder / "metrics.jsonl")])
        trainer.train()
        check_finite(trainer.model, output)
    vlm.model.delete_adapter(REFERENCE)  # type: ignore[operator]
    folder = save_adapter(vlm, output)
    logger.warning("%d rounds; the adapter is in %s", arguments.rounds, folder)
    return output
