"""Select the best IDM-labelled triplets, every class alike: round-robin over classes, highest score first.

python scripts/select_triplets.py --triplets runs/labelled/triplets.json --k 7000 --output runs/selected
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_data_flags, reading


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--triplets", type=Path, required=True, help="a JSON list with scores, as label.py writes it")
    p.add_argument("--k", type=int, required=True, help="how many to take")
    add_data_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from collections import Counter

    from rl import RewindError
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.selection import select_stratified
    from rl.data.triplet_files import read_triplets, write_triplets
    from rl.running.run_folder import claim

    left_out: list[LeftOut] = []
    triplets = read_triplets(arguments.triplets, **reading(arguments), left_out=left_out)
    unscored = [number for number, triplet in enumerate(triplets) if triplet.score is None]
    if unscored:
        raise RewindError(f"{arguments.triplets}, triplet {unscored[0]} has no 'score': label it with label.py")
    classes = [triplet.label or "" for triplet in triplets]
    chosen = select_stratified([t.score or 0.0 for t in triplets], classes, arguments.k)
    output = claim(
        arguments.output,
        "select_triplets.py",
        plain(vars(arguments)),
        inputs=[arguments.triplets],
        overwrite=arguments.overwrite,
    )
    list_left_out(output, left_out)
    file = write_triplets([triplets[i] for i in chosen], output)
    counts = Counter(classes[i] for i in chosen)
    print(f"{len(chosen)} of {len(triplets)} triplets in {file}")
    print(", ".join(f"{name or 'no class'}: {count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    run(main)
