"""Fresh prompts for training by reward: for pictures at hand, actions that were not done there, by a proposer.

python scripts/train_idm.py --propose true --triplets data/train.json runs/labelled/triplets.json \\
    --output_dir runs/proposer
python scripts/propose_actions.py --proposer runs/proposer --triplets runs/labelled/triplets.json --output runs/proposed
python scripts/train_grpo.py --fdm runs/fdm --idm runs/idm --triplets runs/proposed/triplets.json --output_dir runs/grpo
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_cache_flag, add_data_flags, reading
from rl.running.model_flags import add_model_flags, opening

if TYPE_CHECKING:
    from rl.data.labels.proposals import Frame
    from rl.data.labels.shards import Shards

SCRIPT = "propose_actions.py"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--proposer", required=True, help="a run folder of train_idm.py --propose true")
    p.add_argument(
        "--triplets",
        type=Path,
        required=True,
        help="pictures: sources and targets of any data set (docs/guide/data.md); its own actions are not proposed",
    )
    p.add_argument("--num_frames", type=int, help="a random part of the pictures (default: all)")
    p.add_argument("--num_actions", type=int, default=1, help="the most new actions a picture")
    p.add_argument("--num_samples", type=int, default=3, help="sentences drawn a picture, of which new ones are taken")
    p.add_argument("--temperature", type=float, default=0.7, help="lower: fewer actions that cannot be done there")
    p.add_argument("--chunk_size", type=int, default=256, help="pictures between two progress steps")
    p.add_argument("--shard", help="I/N (from 0/N): every N-th chunk; the last shard to end merges all of them")
    p.add_argument("--link_pictures", action="store_true", help="refer to the pictures where they are: no copies")
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
    _check(a)
    from rl.data.labels.proposals import Prompts, frames_of, some_frames
    from rl.data.labels.shards import WORDS_FILE
    from rl.data.left_out import LeftOut, for_resume, list_left_out
    from rl.data.tokens.encoding import read_from
    from rl.data.triplet_files import read_triplets
    from rl.models.digests import weights_for_resume
    from rl.models.fingerprint import for_resume as base_for_resume
    from rl.models.proposer import load_proposer
    from rl.running.run_folder import claim
    from rl.running.shards import shard_of
    from rl.triplets import Triplet
    from trainers.rerank.recipe import take_own_gpu

    shards = Prompts(a.output, shard_of(a.shard))
    left_out: list[LeftOut] = []
    triplets = read_triplets(a.triplets, named=False, **reading(a), left_out=left_out)
    frames = some_frames(frames_of(triplets), a.num_frames, a.seed)
    take_own_gpu()
    proposer = load_proposer(a.proposer, **opening(a))
    config = {name: value for name, value in plain(vars(a)).items() if name != "shard"}
    config |= for_resume(left_out, [a.triplets]) | base_for_resume(proposer.backbone.fingerprint)
    config |= weights_for_resume(proposer=a.proposer)
    inputs = [a.proposer, a.triplets]
    shards.make_room(a.resume, a.overwrite, inputs)
    how = {"resume": a.resume, "overwrite": a.overwrite, "each_process": shards.mine is not None}
    claim(shards.folder, SCRIPT, config, inputs=inputs, **how)
    list_left_out(shards.folder, left_out)
    rows = [Triplet(frame.picture, "") for frame in frames]
    read_from(a.token_cache, [proposer.backbone], shards.own(rows, a.chunk_size), skip_unreadable=True)

    def name(part: Sequence[Triplet]) -> list[list[tuple[str, float]]]:
        pictures = [triplet.source for triplet in part]
        said = proposer.propose(pictures, a.num_samples, temperature=a.temperature, seed=a.seed)
        return [[(one.text, one.logprob) for one in group] for group in said]

    shards.name(WORDS_FILE, rows, a.chunk_size, name)
    if shards.last_to_end({WORDS_FILE: math.ceil(len(rows) / a.chunk_size)}, config):
        list_left_out(a.output, left_out)
        _write(a, shards, frames)


def _check(a: argparse.Namespace) -> None:
    from rl.checks import check_whole
    from rl.errors import RewindError

    for name in ("num_frames", "num_actions", "num_samples", "chunk_size"):
        if getattr(a, name) is not None:
            check_whole(f"--{name}", getattr(a, name), least=1)
    if a.num_actions > a.num_samples:
        raise RewindError(
            f"--num_actions {a.num_actions} new ones cannot come of --num_samples {a.num_samples}: draw more"
        )
    if not 0 < a.temperature < math.inf:
        raise RewindError(f"--temperature must be above 0, else all sentences are the same, not {a.temperature:g}")


def _write(a: argparse.Namespace, shards: Shards, frames: Sequence[Frame]) -> None:
    """The prompts of what all processes have drawn, and how many pictures have none."""
    from rl.data.labels.proposals import new_actions
    from rl.data.labels.shards import WORDS_FILE
    from rl.data.triplet_files import write_triplets
    from rl.errors import RewindError
    from rl.running.files import write_whole

    said = shards.words(WORDS_FILE, math.ceil(len(frames) / a.chunk_size))
    each = [new_actions(frame, group, a.num_actions) for frame, group in zip(frames, said, strict=True)]
    found = [prompt for prompts in each for prompt in prompts]
    if not found:
        raise RewindError(f"{a.proposer} had nothing new for any of {len(frames)} pictures: raise --num_samples")
    file = write_triplets(found, a.output, link=a.link_pictures)
    empty = sum(not prompts for prompts in each)
    totals = {"pictures": len(frames), "prompts": len(found), "without": empty}
    write_whole(a.output / "totals.json", json.dumps(totals, indent=1) + "\n")
    print(f"{len(found)} prompts for {len(frames)} pictures in {file}, {empty} of them without a new action")


if __name__ == "__main__":
    run(main)
