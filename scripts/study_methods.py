"""Best-of-N training, DPO and forms of GRPO from the same start with as many sampled candidates, over several seeds.

python scripts/study_methods.py --runs runs/reproduce/chameleon-0 runs/reproduce/chameleon-1 --output runs/study/methods
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
    p.add_argument("--methods", nargs="+", help="which of them; all if not given")
    p.add_argument("--candidates", type=int, default=7680, help="sampled pictures a method")
    p.add_argument("--cases", type=int, default=400, help="test cases")
    p.add_argument("--validation", type=int, default=120, help="validation cases, which choose the temperatures")
    p.add_argument("--output", type=Path, required=True, help="a run folder; gone on with if the amounts are the same")
    p.add_argument("--page", type=Path, help="also write the page here, its JSON beside it: docs/findings/methods.md")
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl.models.memory import at_most
    from rl.running.run_folder import claim
    from trainers.studies.methods import METHODS, PROMPTS_A_STEP, REWARDED, Amounts, check, study
    from trainers.studies.methods_page import page
    from trainers.studies.reproduce import versions
    from trainers.studies.shared import write_page

    at_most(vars(a).pop("max_rows"))  # bounds memory alone: no part of what the run is

    methods, amounts = a.methods or list(METHODS), Amounts(a.candidates, a.cases, a.validation)
    check(a.runs, methods)
    told = {name: value for name, value in plain(vars(a)).items() if name != "page"}
    told |= {"rewarded": REWARDED, "prompts_a_step": PROMPTS_A_STEP}
    output = claim(a.output, "study_methods.py", told, inputs=a.runs, resume=True)
    found = {str(folder): study(folder, methods, amounts, output / folder.name) for folder in a.runs}
    told = {"amounts": asdict(amounts), "versions": versions(), "rewarded": REWARDED, "runs": found}
    write_page(output, a.page, told, page(told))


if __name__ == "__main__":
    run(main)
