"""SFT on the inverse model's labels, continued or merged, against GRPO on the same pairs, from runs of the main job.

python scripts/study_imitation.py --runs runs/reproduce/chameleon-0 runs/reproduce/chameleon-1 \
    --output runs/study/imitation
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.model_flags import ROWS_HELP


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", nargs="+", type=Path, default=[Path("runs/demo")], help="of demo.py or reproduce.py")
    p.add_argument("--sizes", nargs="+", type=int, default=[1000, 2000, 4000], help="pairs that are imitated or tried")
    p.add_argument("--grpo_steps", type=int, default=128, help="of GRPO, 16 x 8 candidates each")
    p.add_argument("--cases", type=int, default=1000, help="test cases")
    p.add_argument("--validation", type=int, default=200, help="validation cases, which choose the temperatures")
    p.add_argument("--output", type=Path, required=True, help="a run folder; gone on with if the amounts are the same")
    p.add_argument("--page", type=Path, help="also write the page here, its JSON beside it: docs/findings/imitation.md")
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl.models.memory import at_most
    from rl.running.run_folder import claim
    from trainers.studies.imitation import Amounts, check, page, study
    from trainers.studies.reproduce import versions
    from trainers.studies.shared import write_page

    at_most(vars(a).pop("max_rows"))  # bounds memory alone: no part of what the run is
    amounts = Amounts(tuple(a.sizes), a.grpo_steps, a.cases, a.validation)
    labelled = check(a.runs, amounts)
    told = {name: value for name, value in plain(vars(a)).items() if name != "page"}
    output = claim(a.output, "study_imitation.py", told, inputs=a.runs, resume=True)
    found = {str(folder): study(folder, amounts, output / folder.name) for folder in a.runs}
    told = {"amounts": asdict(amounts), "labelled": labelled, "versions": versions(), "runs": found}
    write_page(output, a.page, told, page(told))


if __name__ == "__main__":
    run(main)
