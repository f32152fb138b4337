"""A random base as a folder that every script opens, to try a machine on before a checkpoint is downloaded:

python -m trainers.bench.random_base --preset gpu-7b --output runs/random-7b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rl.models.saving import save_base
from trainers.bench.big import big_base
from trainers.bench.gpu import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(SIZES), default="gpu-7b", help="gpu-7b: 14 GB")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise SystemExit(f"{arguments.output} exists: give another --output")
    save_base(big_base(SIZES[arguments.preset]), arguments.output, {"source": "random weights"})


if __name__ == "__main__":
    main()
