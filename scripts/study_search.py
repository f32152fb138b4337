"""What search at inference gains on the test scenes of runs of the main job: best of N, beam over steps, refinement.

python scripts/study_search.py --runs runs/demo --system sft --output runs/study/search
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.arguments import parse_with_config, plain, run
from rl.errors import RewindError

PARTS = ("best_of_n", "rollout", "refinement")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", nargs="+", default=["runs/demo"], help="run folders of demo.py, one a seed")
    p.add_argument("--system", default="sft", help="the forward model in them that is searched")
    p.add_argument("--scenes", type=int, default=200, help="test scenes, and chains of three actions")
    p.add_argument("--candidates", type=int, default=32, help="the largest N of best of N; twice as many are drawn")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl.run_folder import claim
    from trainers.search_study import study, table

    if a.scenes < 1 or a.candidates < 1:
        raise RewindError("--scenes and --candidates must be at least 1")
    output = claim(a.output, "study_search.py", plain(vars(a)), inputs=a.runs, overwrite=a.overwrite)
    found = []
    for folder in a.runs:
        found.append(study(Path(folder), a.system, a.scenes, a.candidates, a.parts))
        by_run = dict(zip(a.runs, found, strict=False))  # those done so far
        (output / "results.json").write_text(json.dumps(by_run) + "\n", encoding="utf-8")
    (output / "table.md").write_text(table(found) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    run(main)
