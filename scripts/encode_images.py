"""Pictures of triplets or pairs -> codes and feature distances, each once, in a token cache that every script reads.

python scripts/encode_images.py --base leloy/Anole-7b-v0.1-hf --triplets data/train.json --output data/tokens
accelerate launch scripts/encode_images.py --base runs/fdm --triplets data/train.json --output data/tokens

It may be killed and started again at any time, and several may fill one folder: what is there is not encoded again. The
scripts take the folder as --token_cache.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, run
from rl.running.data_flags import add_data_flags, reading
from rl.running.model_flags import add_model_flags, opening


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", "--model", required=True, help="whose image tokenizer: a base, or a run that stands on it")
    p.add_argument("--triplets", nargs="+", type=Path, required=True, help="files of triplets, or pairs without words")
    p.add_argument("--limit", type=int, help="only the first triplets of each file")
    p.add_argument("--no_distances", action="store_true", help="codes alone: enough unless --token_weights are trained")
    p.add_argument(
        "--distances",
        choices=["float32", "float16"],
        help="float16: half the bytes, and token weights that differ a little from those that there are without a "
        "cache (default: as the folder has them, else float32)",
    )
    p.add_argument("--shard", help="I/N (from 0/N): every N-th block of triplets")
    add_data_flags(p)
    add_model_flags(p, base=False, draws=False)
    p.add_argument("--output", "--token_cache", type=Path, required=True, help="the token cache; it may hold others'")
    return p


def main() -> None:
    a = parse_with_config(parser())
    from tqdm.auto import tqdm

    from rl import RewindError
    from rl.data.tokens.cache import TokenCache
    from rl.data.tokens.encoding import Counts, encode_missing
    from rl.data.triplet_files import read_triplets
    from rl.models.proposer import LOADERS
    from rl.models.run_role import role_of
    from rl.running.shards import shard_of
    from trainers.rerank.recipe import take_own_gpu

    if a.no_distances and a.distances:
        raise RewindError(f"--no_distances leaves none to be kept as {a.distances}: leave one of them out")
    shard = shard_of(a.shard) or (0, 1)
    take_own_gpu()
    files = [read_triplets(file, a.limit, named=False, **reading(a)) for file in a.triplets]
    how = {name: value for name, value in opening(a).items() if name != "base"}
    vlm = LOADERS[role_of(a.base) or "fdm"](a.base, **how).backbone
    cache = TokenCache(a.output, vlm, a.distances)
    begun, counts = time.perf_counter(), Counts()
    with tqdm(total=sum(map(len, files)) // shard[1], desc="encode", disable=shard[0] > 0) as bar:
        for triplets in files:
            how = {"distances": not a.no_distances, "shard": shard, "skip_unreadable": not a.strict}
            counts += encode_missing(vlm, cache, triplets, **how, progress=bar.update)
    seconds = time.perf_counter() - begun
    for sentence in counts.unreadable[:3]:
        print(f"left out: {sentence}")
    if counts.unreadable:
        print(f"{len(counts.unreadable)} pictures cannot be read and are left out")
    rate = f" ({counts.encoded / seconds:.1f} a second)" if counts.encoded else ""
    print(f"{counts.encoded} pictures encoded{rate}, {counts.known} were known, {counts.pairs} pairs' distances")
    print(f"the token cache is {a.output}: give it to other scripts as --token_cache {a.output}")


if __name__ == "__main__":
    run(main)
