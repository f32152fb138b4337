"""What `scripts/train_dpo.py` does: rounds of drawing, pairing and preference training."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from transformers import set_seed
from trl import DPOConfig

from rewards import Reward, scorers
from rl.data.candidates.store import CandidateStore
from rl.data.left_out import LeftOut
from rl.models.roles import ForwardDynamics
from rl.triplets import Triplet
from trainers.common.adapters import only_policy_trains, save_adapter
from trainers.common.candidates import groups_of_round, make_few, scored_groups, stored_triplets
from trainers.common.checkpoints import fit
from trainers.common.improvement import open_for_improvement
from trainers.common.metrics import MetricsFile
from trainers.common.preflight import check_training, check_validation
from trainers.common.refusals import DPO
from trainers.common.rows_on_disk import in_passing
from trainers.common.runs import begin_run, check_output, check_rounds, finish_round, read_files, rounds_left
from trainers.common.sharding import release, tell
from trainers.common.tokens import drop_own, use_cache
from trainers.common.validation import VALIDATION_NOISE
from trainers.dpo.arguments import DPOArguments
from trainers.dpo.checks import METRICS, check_options
from trainers.dpo.trainer import REFERENCE, ROWS_FILE, Pairing, WorldModelDPOTrainer, preference_rows

VALIDATION_FILE = "validation_pairs.arrow"


def train_dpo(arguments: DPOArguments, config: DPOConfig) -> Path:
    """Improve a forward model by preferences between its own candidates; returns the run folder."""
    check_output(config)
    check_training(config, DPO, arguments)
    check_options(config)
    check_validation(config, arguments.validation, METRICS)
    check_rounds(arguments.rounds)
    pairing = Pairing(arguments.num_candidates, arguments.min_gap)
    set_seed(config.seed)
    left_out: list[LeftOut] = []
    fdm, idm, triplets, rewards = open_for_improvement(arguments, left_out, stored_triplets(arguments))
    vlm = fdm.backbone
    held_out = read_files(arguments, arguments.validation, left_out)
    inputs = [arguments.fdm, arguments.idm, *arguments.triplets, *arguments.candidates, *arguments.validation]
    output = begin_run("train_dpo.py", arguments, config, inputs, left_out, vlm=vlm, scorers=scorers(rewards))
    backbones = [vlm, *([] if idm is None else [idm.backbone])]
    use_cache(arguments.token_cache, output, backbones, triplets, held_out)
    known = (arguments, fdm, rewards, held_out, pairing, config.seed, output)
    eval_rows = _validation_rows(*known) if held_out else None
    for number, folder in rounds_left(vlm, output, arguments.rounds):
        before = replace(fdm.counts)
        groups = groups_of_round(arguments, fdm, rewards, triplets, config.seed, number, output)
        totals = array("d")
        rows = preference_rows(vlm, pairing.pairs(in_passing(groups, totals)), folder / ROWS_FILE)
        drawn, mean = fdm.counts.since(before).figures(), sum(totals) / len(totals)
        tell("round %d: mean total %.4f, %d pairs of %d candidates", number, mean, len(rows), len(totals))
        config.output_dir = str(folder)
        only_policy_trains(vlm)
        log = MetricsFile(folder / "metrics.jsonl")
        trainer = WorldModelDPOTrainer(vlm, config, rows, eval_dataset=eval_rows, callbacks=[log])
        fit(trainer, folder, arguments.resume)
        release(trainer)
        finish_round(vlm, output, number, {"sampled_total": mean, "pairs": len(rows), **drawn}, config.report_to)
    if REFERENCE in vlm.model.peft_config:  # type: ignore[operator]
        vlm.model.delete_adapter(REFERENCE)  # type: ignore[operator]
    drop_own(output, arguments.token_cache, *backbones)
    folder = save_adapter(vlm, output, role="fdm")
    tell("%d rounds; the adapter is in %s", arguments.rounds, folder)
    make_few(CandidateStore(output / "candidates"))
    return output


def _validation_rows(
    arguments: DPOArguments,
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    pairing: Pairing,
    seed: int,
    output: Path,
) -> Dataset:
    """Pairs of the starting policy's candidates for held-out triplets, always with the same noise, so that all rounds,
    and a resumed run, are measured on the same ones. They are kept out of the store, which is there to train on.
    """
    groups = scored_groups(
        fdm,
        rewards,
        triplets,
        arguments.num_candidates,
        temperature=arguments.temperature,
        seed=seed,
        step=VALIDATION_NOISE,
        max_rows=arguments.max_rows,
        normalise=arguments.normalise_rewards,
    )
    none = (
        f"no group of --validation has candidates whose totals differ by {pairing.min_gap:g}: lower --min_gap, or give "
        "more triplets"
    )
    rows = preference_rows(fdm.backbone, pairing.pairs(groups), output / VALIDATION_FILE, none)
    tell("validation: %d pairs of %d groups", len(rows), len(triplets))
    return rows
