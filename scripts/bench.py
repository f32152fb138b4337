"""The figures of `make bench`: speed and memory against committed baselines, written to OUTPUT/bench.json.

python scripts/bench.py --preset full --output runs/bench
python scripts/bench.py --preset smoke --parts logprobs state --output runs/bench
python scripts/bench.py --preset gpu-7b --output runs/gpu-7b
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--preset",
        choices=["smoke", "full", "gpu-7b", "gpu-smoke"],
        default="full",
        help="smoke only shows that it runs; gpu-7b: a random 7B on one GPU of 80 GB; gpu-smoke: that, tiny, anywhere",
    )
    p.add_argument("--parts", nargs="+", default=[], help="only these (sampler, scorer, logprobs, ...)")
    p.add_argument("--fdm", help="a trained forward model (runs/demo/sft): passes that reranking takes")
    p.add_argument("--triplets", type=Path, help="a data set for --fdm: its first 24 in place of the tabletop's scenes")
    p.add_argument("--output", type=Path, required=True, help="its bench.json is written anew")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from rl.errors import RewindError
    from trainers.bench.figures import bench
    from trainers.bench.gpu import SIZES, bench_gpu

    if arguments.triplets is not None and arguments.fdm is None:
        raise RewindError("--triplets are for the passes of --fdm: give both, or none")
    if arguments.preset in SIZES:
        if arguments.fdm is not None:
            raise RewindError(f"--fdm is not measured by --preset {arguments.preset}: leave it out")
        found = bench_gpu(arguments.preset, arguments.output, arguments.parts)
    else:
        found = bench(
            arguments.preset, arguments.output, arguments.parts, fdm=arguments.fdm, triplets=arguments.triplets
        )
    for name, value in found.items():
        if isinstance(value, float):
            print(f"{name:30s} {value:8.3f}")
    for part, reason in found.get("failed", {}).items():
        print(f"{part:30s} not measured: {reason}")
    for labels, seconds in found.get("selection_seconds", {}).items():
        print(f"selection of {int(labels):>12,} labels {seconds:8.3f} s")
    print(f"medians, commands, machine and versions: {arguments.output / 'bench.json'}")


if __name__ == "__main__":
    run(main)
