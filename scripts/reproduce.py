"""The main job with larger budgets over several seeds; finished seeds are kept in --results and reused.

python scripts/reproduce.py --seeds 0 1 2 --output runs/reproduce --results docs/results
python scripts/reproduce.py --base runs/liquid-4 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.errors import RewindError
from rl.running.command_line import parse_with_config, run
from rl.running.files import write_whole
from rl.running.model_flags import ROWS_HELP


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", help="a base of another family, by name or folder (docs/guide/families.md)")
    p.add_argument("--family", help="family of the base; chameleon, which ships, or that of --base")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--output", type=Path, default=Path("runs/reproduce"), help="a run folder a seed; gone on with")
    p.add_argument("--results", type=Path, default=Path("docs/results"), help="a JSON file a finished seed")
    p.add_argument("--page", type=Path, help="the page of tables; RESULTS.md beside --results if not given")
    p.add_argument("--budget", nargs="*", metavar="NAME=N", help="other amounts than the usual ones, e.g. test=200")
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl.models.memory import at_most
    from trainers.studies import reproduce
    from trainers.studies.demo.story import with_changes
    from trainers.studies.reproduce_page import page_of

    at_most(vars(a).pop("max_rows"))  # bounds memory alone: no part of what the run is

    budget = with_changes(reproduce.BUDGET, a.budget or [])
    family = reproduce.family_of(a.base) if a.base else a.family or "chameleon"
    if a.family not in (None, family):
        raise RewindError(f"--family {a.family}: {a.base} is of the family {family}")
    seeds = [reproduce.one_seed(family, seed, budget, a.output, a.results, a.base) for seed in a.seeds]
    files = dict(sorted({family: seeds, **reproduce.of_other_families(a.results, family)}.items()))
    found = {family: reproduce.taken_together(seeds) for family, seeds in files.items()}
    text = json.dumps(found, indent=1) + "\n"
    page = a.page or a.results.with_suffix(".md")
    for file in (a.output / "results.json", a.results / "results.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    usual = a.seeds == [0, 1, 2] and not a.budget and not a.base
    command = "make reproduce" if usual else f"python scripts/reproduce.py --seeds {' '.join(map(str, a.seeds))}"
    command += f" --base {a.base}" if a.base else ""
    command += f" --budget {' '.join(a.budget)}" if a.budget else ""
    write_whole(page, page_of(found, files, command))
    print(f"{page} and {a.results / 'results.json'} are written")


if __name__ == "__main__":
    run(main)
