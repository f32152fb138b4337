"""Pairs of pictures -> triplets named by an inverse dynamics model, with its confidence as score.

python scripts/label.py --idm runs/idm --pairs runs/pairs/pairs.json --output runs/labelled
accelerate launch --num_processes 8 scripts/label.py --idm runs/idm --pairs runs/pairs/pairs.json --output runs/labelled
python scripts/label.py --idm runs/idm --verify runs/fdm --labelled runs/validation/triplets.json \\
    --pairs runs/pairs/pairs.json --output runs/labelled
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_cache_flag, add_data_flags, reading
from rl.running.model_flags import add_model_flags, opening

if TYPE_CHECKING:
    from rl.data.labels.calibration import Calibration
    from rl.data.labels.shards import Shards
    from rl.data.left_out import LeftOut
    from rl.triplets import Triplet

VERIFIED_SAMPLES = 8


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--idm", required=True, help="a run folder of train_idm.py, or a base")
    p.add_argument("--pairs", type=Path, required=True, help="a JSON list of mine_videos.py; 'instruction' is ignored")
    p.add_argument(
        "--temperature", type=float, help="0: the likeliest words; 1: sampled, as in the paper (default: 1 for several)"
    )
    p.add_argument("--num_samples", type=int, help="sentences a pair; the most frequent one is taken (default: 1)")
    p.add_argument(
        "--verify",
        help=f"a forward model: of {VERIFIED_SAMPLES} sentences a pair, or --num_samples, the one is taken under which "
        "both models together find the pair likeliest",
    )
    p.add_argument("--verify_weight", type=float, help="nats of --verify's say for one of the IDM's (default: 1)")
    p.add_argument("--verify_changed", action="store_true", help="--verify looks only at the tokens that change")
    p.add_argument(
        "--labelled",
        type=Path,
        help="triplets whose words are right and new to the models: fits --verify_weight and the column 'confidence'",
    )
    p.add_argument("--chunk_size", type=int, default=256, help="pairs labelled between two progress steps")
    p.add_argument("--shard", help="I/N (from 0/N): every N-th chunk; the last shard to end merges all of them")
    p.add_argument("--link_pictures", action="store_true", help="refer to the pictures where they are: no copies")
    p.add_argument(
        "--parquet", action="store_true", help="triplets as a folder of Parquet shards in place of triplets.json"
    )
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_cache_flag(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--resume", action="store_true", help="go on where an interrupted run of the same command stopped")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl import RewindError, load_fdm, load_idm
    from rl.data.labels.calibration import LEAST
    from rl.data.labels.labelling import Naming, propose
    from rl.data.labels.shards import CHECKED_FILE, SCRIPT, WORDS_FILE, Shards
    from rl.data.left_out import for_resume, list_left_out
    from rl.data.parquet_files import check_columns
    from rl.data.tokens.encoding import read_from
    from rl.data.triplet_files import read_triplets
    from rl.models.digests import weights_for_resume
    from rl.models.fingerprint import for_resume as base_for_resume
    from rl.models.opening import load_idm_beside
    from rl.running.run_folder import claim
    from rl.running.shards import shard_of
    from trainers.rerank.recipe import take_own_gpu

    if a.chunk_size < 1:
        raise RewindError("--chunk_size must be at least 1")
    if a.verify is None and (a.verify_changed or a.verify_weight is not None):
        raise RewindError("--verify_weight and --verify_changed are about a forward model: name one, --verify")
    if a.verify_weight is not None and not 0 <= a.verify_weight < math.inf:
        raise RewindError(f"--verify_weight must be a number from 0 on, not {a.verify_weight:g}")
    a.num_samples = (1 if a.verify is None else VERIFIED_SAMPLES) if a.num_samples is None else a.num_samples
    a.temperature = float(a.num_samples > 1) if a.temperature is None else a.temperature
    how = Naming(a.temperature, a.num_samples, a.seed, a.verify_changed)
    shards = Shards(a.output, shard_of(a.shard))
    left_out: list[LeftOut] = []
    unchecked: list[LeftOut] = []
    pairs = read_triplets(a.pairs, named=False, with_targets=True, **reading(a), left_out=left_out)
    checked: Sequence[Triplet] = (
        [] if a.labelled is None else read_triplets(a.labelled, with_targets=True, **reading(a), left_out=unchecked)
    )
    if a.parquet:
        check_columns(pairs)
    take_own_gpu()
    fdm = None if a.verify is None else load_fdm(a.verify, **opening(a))
    idm = load_idm(a.idm, **opening(a)) if fdm is None else load_idm_beside(a.idm, fdm.backbone, **opening(a))
    if fdm is not None and fdm.backbone.actions != idm.backbone.actions:
        raise RewindError("--idm and --verify take different actions: both words, or vectors of the same ranges")
    if a.labelled is not None and len(checked) < LEAST:
        raise RewindError(f"{a.labelled} has {len(checked)} triplets to calibrate labels on: give at least {LEAST}")
    idm.backbone.check_actions([triplet.action for triplet in checked])
    config = {name: value for name, value in plain(vars(a)).items() if name != "shard"}
    config |= for_resume(left_out, [a.pairs, a.labelled]) | base_for_resume(idm.backbone.fingerprint)
    config |= weights_for_resume(idm=a.idm, verify=a.verify)
    inputs = [a.idm, a.verify, a.pairs, a.labelled]
    shards.make_room(a.resume, a.overwrite, inputs)
    claim(
        shards.folder,
        SCRIPT,
        config,
        inputs=inputs,
        resume=a.resume,
        overwrite=a.overwrite,
        harmless=dict.fromkeys(("parquet", "link_pictures"), "triplets are written in the other form, the words stay"),
        each_process=shards.mine is not None,
    )
    list_left_out(shards.folder, [*left_out, *unchecked])
    backbones = [idm.backbone, *([] if fdm is None or fdm.backbone is idm.backbone else [fdm.backbone])]
    mine = pairs if shards.mine is None else shards.own(pairs, a.chunk_size)  # else all would encode everything
    for rows in (mine, checked):
        read_from(a.token_cache, backbones, rows, skip_unreadable=True)
    for file, rows in ((CHECKED_FILE, checked), (WORDS_FILE, pairs)):
        if rows:
            shards.name(file, rows, a.chunk_size, lambda part: propose(idm, part, how, fdm))
    if shards.last_to_end({WORDS_FILE: _chunks(pairs, a), CHECKED_FILE: _chunks(checked, a)}, config):
        calibration = _calibrated(a, shards, checked, idm, fdm)
        _write(a, shards, pairs, left_out, unchecked, calibration)


def _chunks(rows: Sequence[Triplet], a: argparse.Namespace) -> int:
    return math.ceil(len(rows) / a.chunk_size)


def _calibrated(
    a: argparse.Namespace, shards: Shards, checked: Sequence[Triplet], idm: Any, fdm: Any
) -> Calibration | None:
    """What labelled triplets say of the labels, printed and written; None without any."""
    from rl.data.labels.calibration import as_likely_as_true, calibrate, rival_words, same_words
    from rl.data.labels.labelling import target_logprobs
    from rl.data.labels.shards import CHECKED_FILE
    from rl.running.files import write_whole

    if not checked:
        return None
    vlm = idm.backbone  # a vector is right if it falls into the same bins
    said = list(shards.words(CHECKED_FILE, _chunks(checked, a)))
    heard = [n for n, group in enumerate(said) if group]  # of others the model said nothing, or they are unreadable
    checked, sentences = [checked[n] for n in heard], [said[n] for n in heard]
    truths = [t.action if vlm.actions is None else vlm.action(vlm.action_ids(t.action)) for t in checked]
    right = [same_words(truth) for truth in truths]
    if fdm is not None:
        true, rival = (
            target_logprobs(fdm, checked, words, a.verify_changed) for words in (truths, rival_words(truths))
        )
        right = as_likely_as_true(truths, true, rival, sentences)
    found = calibrate(sentences, right, a.num_samples, a.verify_weight)
    write_whole(a.output / "calibration.json", json.dumps(found.card, indent=1) + "\n")
    above = ", ".join(f"{at}: {one['right']:.0%} of {one['share']:.0%}" for at, one in found.report["right_at"].items())
    weight = "" if a.verify is None else f"; weight {found.weight:.3g}"
    print(f"{found.report['right']:.1%} of {found.report['pairs']} labelled pairs are named rightly{weight}")
    print(f"right among those above a confidence of {above}" if above else "no label reaches a confidence of 0.5")
    return found


def _write(
    a: argparse.Namespace,
    shards: Shards,
    pairs: Sequence[Triplet],
    left_out: Sequence[LeftOut],
    unchecked: Sequence[LeftOut],
    calibration: Calibration | None,
) -> None:
    """The triplets of what all processes have named, and what became of every pair."""
    from collections import Counter

    from rl import RewindError
    from rl.data.labels.labelling import choose, named
    from rl.data.labels.shards import WORDS_FILE, unreadable
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.mixture import is_mixture
    from rl.data.parquet_files import FOLDER, write_parquet
    from rl.data.triplet_files import write_triplets
    from rl.running.files import write_whole

    weight = calibration.weight if calibration else 1.0 if a.verify_weight is None else a.verify_weight
    found, wordless = [], []
    for entry, pair, said in zip(
        _numbers(pairs, left_out, is_mixture(a.pairs)), pairs, shards.words(WORDS_FILE, _chunks(pairs, a)), strict=True
    ):
        choice = choose(said, a.num_samples, weight)
        if choice is None:
            fault = unreadable(pair)
            told = f"{a.pairs}, pair {entry}: {fault or f'the model {a.idm} had no words for it'}"
            wordless.append(LeftOut(str(a.pairs), entry, None, "unreadable" if fault else "no words", told))
            continue
        if calibration is not None:
            choice = choice._replace(columns={**choice.columns, "confidence": calibration.confidence(choice)})
        found.append(named(pair, choice))
    if not found:
        raise RewindError(f"the model {a.idm} had no words for any of {len(pairs)} pairs")
    list_left_out(a.output, [*left_out, *wordless, *unchecked])
    if a.parquet:
        (a.output / "triplets.json").unlink(missing_ok=True)  # a run goes on with the other form
        file = write_parquet(found, a.output, link=a.link_pictures)
    else:
        for folder in (FOLDER, "images"):  # of a run that was killed here, or had the other form
            shutil.rmtree(a.output / folder, ignore_errors=True)
        file = write_triplets(found, a.output, link=a.link_pictures)
    reasons = Counter(one.reason for one in [*left_out, *wordless])
    totals = {"in": len(pairs) + len(left_out), "labelled": len(found), "left_out": dict(reasons.most_common())}
    write_whole(a.output / "totals.json", json.dumps(totals, indent=1) + "\n")
    print(f"{len(found)} of {len(pairs)} pairs labelled in {file}")
    lost = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    print(
        f"{totals['in']} entries in = {len(found)} labelled + {reasons.total()} left out{f' ({lost})' if lost else ''}"
    )


def _numbers(pairs: Sequence[Triplet], left_out: Sequence[LeftOut], is_mixture: bool) -> list[int]:
    """Which entry of the file each pair is; of a mixture, which of the pairs."""
    unusable = {one.entry for one in left_out}
    if is_mixture:
        return list(range(len(pairs)))
    return [number for number in range(len(pairs) + len(left_out)) if number not in unusable]


if __name__ == "__main__":
    run(main)
