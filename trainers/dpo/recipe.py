"""What `scripts/train_dpo.py` does: rounds of drawing, pairing and preference training."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import set_seed
from trl import DPOConfig

from rl.data.left_out import LeftOut
from rl.errors import RewindError
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.candidates import groups_of_round, stored_triplets
from trainers.common.checkpoints import fit
from trainers.common.improvement import open_for_improvement
from trainers.common.metrics import MetricsFile
from trainers.common.runs import begin_run, check_output, check_rounds, finish_round, rounds_left
from trainers.dpo.arguments import DPOArguments
from trainers.dpo.trainer import REFERENCE, Pairing, WorldModelDPOTrainer, preference_rows

logger = logging.getLogger("rl")


def train_dpo(arguments: DPOArguments, config: DPOConfig) -> Path:
    """Improve a forward model by preferences between its own candidates; returns the run folder."""
    check_output(config)
    check_rounds(arguments.rounds)
    pairing = Pairing(arguments.num_candidates, arguments.min_gap)
    set_seed(config.seed)
    left_out: list[LeftOut] = []
    fdm, _, triplets, rewards = open_for_improvement(arguments, left_out, stored_triplets(arguments))
    vlm = fdm.backbone
    inputs = [arguments.fdm, arguments.idm, *arguments.triplets, *arguments.candidates]
    output = begin_run("train_dpo.py", arguments, config, inputs, left_out)
    for number, folder in rounds_left(vlm, output, arguments.rounds):
        groups = groups_of_round(arguments, fdm, rewards, triplets, config.seed, number, output)
        pairs = [pair for triplet, group in groups if (pair := pairing.pair(triplet, group)) is not None]
        totals = [s.total for _, group in groups for s in group if s.total is not None]
        if not totals:
            raise RewindError(f"round {number}: no candidate could be scored")
        mean = sum(totals) / len(totals)
        logger.warning("round %d: mean total %.4f, %d pairs of %d groups", number, mean, len(pairs), len(groups))
        rows = preference_rows(vlm, pairs)
        config.output_dir = str(folder)
        only_policy_trains(vlm)
        trainer = WorldModelDPOTrainer(vlm, config, rows, callbacks=[MetricsFile(folder / "metrics.jsonl")])
        fit(trainer, folder, arguments.resume)
        finish_round(vlm, output, number, {"sampled_total": mean, "pairs": len(pairs)})
    if REFERENCE in vlm.model.peft_config:  # type: ignore[operator]
        vlm.model.delete_adapter(REFERENCE)  # type: ignore[operator]
    folder = save_adapter(vlm, output)
    logger.warning("%d rounds; the adapter is in %s", arguments.rounds, folder)
    return output
