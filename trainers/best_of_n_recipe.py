"""What `scripts/train_best_of_n.py` does: rounds of drawing, choosing and fine-tuning."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from transformers import set_seed
from trl import SFTConfig

from rl.errors import RewindError
from rl.run_folder import claim
from trainers.arguments import BestOfNArguments, settings_of
from trainers.best_of_n import Keep, best_candidates
from trainers.grpo_recipe import open_for_improvement
from trainers.pretraining import MetricsFile, check_finite, require_one_process
from trainers.sft import RoleSFTTrainer, role_rows, save_adapter

logger = logging.getLogger("rl")


def train_best_of_n(arguments: BestOfNArguments, config: SFTConfig) -> Path:
    """Improve a forward model on the best of its own candidates; returns the run folder, which `load_fdm` opens."""
    require_one_process("train_best_of_n.py")
    if config.output_dir is None:
        raise RewindError("give a folder for the run: --output_dir runs/my-run")
    if arguments.rounds < 1:
        raise RewindError(f"--rounds must be at least 1, not {arguments.rounds}")
    if arguments.resume:
        raise RewindError("a run of train_best_of_n.py cannot be resumed yet: begin again with --overwrite true")
    keep = Keep(arguments.num_candidates, arguments.min_lead, arguments.min_changed)
    set_seed(config.seed)
    fdm, _, triplets, rewards = open_for_improvement(arguments)
    vlm = fdm.backbone
    output = claim(
        Path(config.output_dir),
        "train_best_of_n.py",
        {**asdict(arguments), "training": settings_of(config)},
        inputs=[arguments.fdm, arguments.idm, *arguments.triplets],
        overwrite=arguments.overwrite,
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    for number in range(arguments.rounds):
        kept, totals = best_candidates(
            fdm, rewards, triplets, keep, temperature=arguments.temperature, seed=config.seed, step=number
        )
        if not kept:
            raise RewindError(
                f"round {number}: no group had a best candidate that leads by {keep.min_lead} and changes "
                f"{keep.min_changed} tokens: lower --min_lead or --min_changed"
            )
        mean = sum(totals) / len(totals)
        with (output / "rounds.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"round": number, "sampled_total": mean, "kept": len(kept)}) + "\n")
        logger.warning("round %d: mean total %.4f, %d of %d groups kept", number, mean, len(kept), len(triplets))
        folder = output / f"round-{number}"
        folder.mkdir()
        config.output_dir = str(folder)
        rows = role_rows(vlm, "fdm", [t for t, _ in kept], candidates=[best.candidate for _, best in kept])
        trainer = RoleSFTTrainer(vlm, "fdm", config, rows, callbacks=[MetricsFile(folder / "metrics.jsonl")])
        trainer.train()
        check_finite(trainer.model, output)
    folder = save_adapter(vlm, output)
    logger.warning("%d rounds; the adapter is in %s", arguments.rounds, folder)
    return output
