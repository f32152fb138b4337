"""A random base as a folder that every script opens, to try a machine on before a checkpoint is downloaded:

python -m trainers.bench.random_base --preset gpu-7b --output runs/random-7b
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rl.errors import RewindError
from rl.models.saving import save_base
from rl.running.command_line import run
from trainers.bench.big import big_base
from trainers.bench.gpu import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(SIZES), default="gpu-7b", help="gpu-7b: 14 GB")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise RewindError(f"{arguments.output} exists: give another --output")
    beside = arguments.output.with_name(f".{arguments.output.name}")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was ended
    save_base(big_base(SIZES[arguments.preset]), beside, {"source": "random weights"})
    beside.replace(arguments.output)


if __name__ == "__main__":
    run(main)
