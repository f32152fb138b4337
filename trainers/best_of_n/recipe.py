"""What `scripts/train_best_of_n.py` does: rounds of drawing, choosing and fine-tuning."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from rewards import scorers
from rl.data.candidates.store import CandidateStore
from rl.data.left_out import LeftOut
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.best_of_n.keep import KEPT_FILE, Keep, kept_rows
from trainers.common.adapters import save_adapter
from trainers.common.candidates import groups_of_round, make_few, stored_triplets
from trainers.common.checkpoints import fit
from trainers.common.improvement import open_for_improvement
from trainers.common.metrics import MetricsFile
from trainers.common.preflight import check_no_validation, check_training
from trainers.common.refusals import SFT
from trainers.common.rows_on_disk import in_passing
from trainers.common.runs import begin_run, check_output, check_rounds, finish_round, rounds_left
from trainers.common.sharding import release, tell
from trainers.common.tokens import drop_own, use_cache
from trainers.sft.arguments import RoleConfig
from trainers.sft.trainer import RoleSFTTrainer


def train_best_of_n(arguments: BestOfNArguments, config: RoleConfig) -> Path:
    """Improve a forward model on the best of its own candidates; returns the run folder, which `load_fdm` opens."""
    check_output(config)
    check_training(config, SFT, arguments)
    check_no_validation(config, "train_best_of_n.py")
    check_rounds(arguments.rounds)
    settings = (arguments.min_lead, arguments.min_changed, arguments.top, arguments.reward_temperature)
    keep = Keep(arguments.num_candidates, *settings)
    set_seed(config.seed)
    left_out: list[LeftOut] = []
    fdm, idm, triplets, rewards = open_for_improvement(arguments, left_out, stored_triplets(arguments))
    vlm = fdm.backbone
    inputs = [arguments.fdm, arguments.idm, *arguments.triplets, *arguments.candidates]
    output = begin_run("train_best_of_n.py", arguments, config, inputs, left_out, vlm=vlm, scorers=scorers(rewards))
    backbones = [vlm, *([] if idm is None else [idm.backbone])]
    use_cache(arguments.token_cache, output, backbones, triplets)
    for number, folder in rounds_left(vlm, output, arguments.rounds):
        before = replace(fdm.counts)
        groups = groups_of_round(arguments, fdm, rewards, triplets, config.seed, number, output)
        totals = array("d")
        rows = kept_rows(vlm, keep.of(vlm, in_passing(groups, totals)), folder / KEPT_FILE)
        drawn, mean = fdm.counts.since(before).figures(), sum(totals) / len(totals)
        tell("round %d: mean total %.4f, %d kept of %d candidates", number, mean, len(rows), len(totals))
        config.output_dir = str(folder)
        weighted, log = "weights" in rows.column_names, MetricsFile(folder / "metrics.jsonl")
        trainer = RoleSFTTrainer(vlm, "fdm", config, rows, use_weights=weighted, callbacks=[log])
        fit(trainer, folder, arguments.resume)
        release(trainer)
        finish_round(vlm, output, number, {"sampled_total": mean, "kept": len(rows), **drawn}, config.report_to)
    folder = save_adapter(vlm, output, role="fdm")
    tell("%d rounds; the adapter is in %s", arguments.rounds, folder)
    drop_own(output, arguments.token_cache, *backbones)
    make_few(CandidateStore(output / "candidates"))
    return output
