"""The whole story on a world: labelled data -> IDM -> labels for video -> better FDM -> rewards -> measured.

python scripts/demo.py --world tabletop --output runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.model_flags import ROWS_HELP

BUDGET = ("labelled", "videos", "selected", "test", "validation")
STEPS = ("idm_steps", "fdm_steps", "grpo_steps", "grpo_prompts", "best_of_n_steps")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--world", default="tabletop", help="a world's name, or file.py:Class")
    p.add_argument("--base", help="a base by name or folder; a world without one pretrains its own in OUTPUT/base")
    p.add_argument("--labelled", type=int, help="labelled triplets")
    p.add_argument("--videos", type=int, help="unlabelled videos")
    p.add_argument("--selected", type=int, help="IDM-labelled pairs that are used")
    p.add_argument("--test", type=int, help="test cases")
    p.add_argument(
        "--validation",
        type=int,
        help="cases on which the premise is looked at, mixes of rewards are fitted and temperatures chosen",
    )
    p.add_argument("--idm_steps", type=int)
    p.add_argument("--fdm_steps", type=int)
    p.add_argument("--grpo_steps", type=int)
    p.add_argument("--grpo_prompts", type=int, help="sources and actions a GRPO step tries")
    p.add_argument("--best_of_n_steps", type=int)
    p.add_argument(
        "--budget", nargs="*", metavar="NAME=N", default=[], help="any other amount by name, e.g. fdm_batch_size=8"
    )
    p.add_argument("--base_steps", type=int, default=4000, help="steps of a base for a world that has none")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, default=Path("runs/demo"))
    p.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run; a finished one is moved to OUTPUT.1"
    )
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from rl.errors import RewindError
    from rl.models.memory import at_most
    from rl.running.run_folder import claim, move_finished
    from trainers.studies.demo.job import REPORT_FILE, main_job, splits_of
    from trainers.studies.demo.report import text_table
    from trainers.studies.demo.story import Budget, with_changes

    at_most(vars(arguments).pop("max_rows"))  # bounds memory alone: no part of what the run is

    more = vars(arguments).pop("budget")  # the config has the whole budget
    given = {name: getattr(arguments, name) for name in (*BUDGET, *STEPS) if getattr(arguments, name) is not None}
    if twice := given.keys() & {spec.partition("=")[0] for spec in more}:
        raise RewindError(f"{min(twice)} is in --budget and a flag of its own: give it once")
    budget = with_changes(Budget(**given), more)
    splits = splits_of(arguments.world)
    output: Path = arguments.output
    if arguments.resume:
        move_finished(output, "demo.py")
    config = {**plain(vars(arguments)), "budget": budget.told()}
    claim(output, "demo.py", config, inputs=[arguments.base], resume=arguments.resume, overwrite=arguments.overwrite)
    results = main_job(arguments.world, splits, arguments.base, output, arguments.seed, budget, arguments.base_steps)
    print(text_table(results))
    print(f"{results['seconds']['total']:.0f} s; look at {output / REPORT_FILE}")


if __name__ == "__main__":
    run(main)
