"""GRPO with other settings, from the start that a run of the main job left, compared with it on validation cases.

python scripts/study_grpo.py --run runs/demo --settings learning_rate=3e-4 max_steps=30 --output runs/study/lr-3e-4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.errors import RewindError
from rl.running.command_line import parse_with_config, plain, run
from rl.running.files import write_whole
from rl.running.model_flags import ROWS_HELP


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder of demo.py or reproduce.py")
    p.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of GRPOConfig or our trainer")
    p.add_argument("--keep", type=float, default=1.0, help="weight of keep_unchanged beside an idm_margin of 1")
    p.add_argument("--floor", type=float, default=-5.0, help="of idm_margin")
    p.add_argument("--background", type=float, help="of idm_margin: log-likelihood of a rival for what nobody names")
    p.add_argument("--cases", type=int, default=300, help="validation cases")
    p.add_argument("--chains", type=int, default=0, help="train on chains of 3 actions, measure on so many of them")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    a = parse_with_config(parser())
    import yaml

    from rl.models.memory import at_most
    from rl.running.run_folder import claim
    from trainers.studies.grpo_settings import check, study, table

    at_most(vars(a).pop("max_rows"))  # bounds memory alone: no part of what the run is

    settings = {}
    for spec in a.settings:
        name, equals, value = spec.partition("=")
        if not equals:
            raise RewindError(f"--settings takes NAME=VALUE, not {spec}")
        number = yaml.safe_load(value)
        try:  # YAML reads 3e-4 as a word
            settings[name] = float(number) if isinstance(number, str) else number
        except ValueError:
            settings[name] = number
    check(a.run, settings, a.cases)
    output = claim(a.output, "study_grpo.py", plain(vars(a)), inputs=[a.run], overwrite=a.overwrite)
    found = study(
        a.run, output, settings, cases=a.cases, keep=a.keep, floor=a.floor, background=a.background, chains=a.chains
    )
    write_whole(output / "results.json", json.dumps(found, indent=1) + "\n")
    print(table([found]), end="")


if __name__ == "__main__":
    run(main)
