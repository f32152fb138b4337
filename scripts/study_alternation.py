"""Whether GRPO of both roles in turns beats GRPO of the forward role alone, from runs of the main job, by the oracle.

python scripts/study_alternation.py --runs runs/reproduce/chameleon-0 runs/reproduce/chameleon-1 \
    --output runs/study/alternation
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
    p.add_argument("--arms", nargs="+", help="which of them; all if not given")
    p.add_argument("--rounds", type=int, default=3, help="each on a shard of its own of the run's pairs")
    p.add_argument("--fdm_steps", type=int, default=64, help="of GRPO of the forward model, a round, 16 x 8 candidates")
    p.add_argument("--idm_steps", type=int, default=64, help="of GRPO of the inverse model, a round, 32 x 8 sentences")
    p.add_argument("--cases", type=int, default=1000, help="test cases")
    p.add_argument("--validation", type=int, default=200, help="validation cases, which choose the temperatures")
    p.add_argument("--output", type=Path, required=True, help="a run folder; gone on with if the amounts are the same")
    p.add_argument(
        "--page", type=Path, help="also write the page here, its JSON beside it: docs/findings/alternation.md"
    )
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl.models.memory import at_most
    from rl.running.run_folder import claim
    from trainers.studies.alternation import ARMS, Amounts, study
    from trainers.studies.alternation_page import page
    from trainers.studies.methods import check
    from trainers.studies.reproduce import versions
    from trainers.studies.shared import write_page

    at_most(vars(a).pop("max_rows"))  # bounds memory alone: no part of what the run is

    arms = a.arms or list(ARMS)
    amounts = Amounts(a.rounds, a.fdm_steps, a.idm_steps, a.cases, a.validation)
    check(a.runs, arms, ARMS, "arm")
    told = {name: value for name, value in plain(vars(a)).items() if name != "page"}
    output = claim(a.output, "study_alternation.py", told, inputs=a.runs, resume=True)
    found = {str(folder): study(folder, arms, amounts, output / folder.name) for folder in a.runs}
    told = {"amounts": asdict(amounts), "versions": versions(), "runs": found}
    write_page(output, a.page, told, page(told))


if __name__ == "__main__":
    run(main)
