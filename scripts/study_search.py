"""What search at inference gains on the test scenes of runs of the main job: best of N, beam over steps, refinement.

python scripts/study_search.py --runs runs/demo --system sft --output runs/study/search
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.errors import RewindError
from rl.running.command_line import parse_with_config, plain, run
from rl.running.files import write_whole
from rl.running.model_flags import ROWS_HELP

PARTS = ("best_of_n", "rollout", "refinement")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", nargs="+", default=["runs/demo"], help="run folders of demo.py, one a seed")
    p.add_argument("--system", default="sft", help="the forward model in them that is searched")
    p.add_argument("--idm", default="idm", help="the inverse model in them; the mix of grpo takes 'idm_on_video'")
    p.add_argument(
        "--second_idm",
        nargs="+",
        default=[],
        help="further inverse models for the ensemble: the name of one in each run, or a run folder",
    )
    p.add_argument("--scenes", type=int, default=200, help="test scenes, and chains of three actions")
    p.add_argument("--candidates", type=int, default=32, help="the largest N of best of N; twice as many are drawn")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--page", type=Path, help="also write the page here, its JSON beside it: docs/findings/search.md")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    p.add_argument("--max_rows", type=int, help=ROWS_HELP)
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl.models.memory import at_most
    from rl.running.run_folder import claim
    from trainers.studies.reproduce import versions
    from trainers.studies.search import jobs, study
    from trainers.studies.search_page import page_of

    at_most(vars(a).pop("max_rows"))  # bounds memory alone: no part of what the run is

    if a.scenes < 1 or a.candidates < 1:
        raise RewindError("--scenes and --candidates must be at least 1")
    if a.page is not None and a.page.suffix != ".md":
        raise RewindError(f"--page must end in .md, its JSON stands beside it; not {a.page}")
    todo = jobs([Path(folder) for folder in a.runs], a.system, a.second_idm, a.idm)
    output = claim(a.output, "study_search.py", plain(vars(a)), inputs=[*a.runs, *a.second_idm], overwrite=a.overwrite)
    names = ("system", "idm", "scenes", "candidates", "second_idm")
    found = {"command": command(a), **{name: getattr(a, name) for name in names}, "versions": versions(), "runs": []}
    for job in todo:
        cases = study(job, a.scenes, a.candidates, a.parts)
        found["runs"].append({"run": str(job.run), "seed": job.seed, "world": job.world, "cases": cases})
        write(output / "results.json", found)  # after every run, so that an interruption loses one at most
    page = output / "results.md"
    if a.page is not None:
        page = a.page
        page.parent.mkdir(parents=True, exist_ok=True)
        write(page.with_suffix(".json"), found)
    source = page.with_suffix(".json")
    write_whole(page, page_of(json.loads(source.read_text(encoding="utf-8")), source.name))
    print(page.read_text(encoding="utf-8"))


def write(file: Path, found: dict[str, Any]) -> None:
    write_whole(file, json.dumps(found) + "\n")


def command(a: argparse.Namespace) -> str:
    """What makes the same figures again."""
    words = ["python", "scripts/study_search.py", "--runs", *a.runs, "--system", a.system]
    words += ["--idm", a.idm] if a.idm != "idm" else []
    words += ["--second_idm", *a.second_idm] if a.second_idm else []
    words += ["--scenes", str(a.scenes), "--candidates", str(a.candidates)]
    words += ["--parts", *a.parts] if a.parts != list(PARTS) else []
    words += ["--output", str(a.output), *(["--page", str(a.page)] if a.page is not None else [])]
    return shlex.join(words)


if __name__ == "__main__":
    run(main)
