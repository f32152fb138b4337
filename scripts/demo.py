"""The whole story on a world: labelled data -> IDM -> labels for video -> better FDM -> rewards -> measured.

python scripts/demo.py --world tabletop --output runs/demo
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.arguments import parse_with_config, plain, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--world", default="tabletop", help="a world's name, or file.py:Class")
    p.add_argument("--base", default="tabletop-chameleon", help="a base by name or folder")
    p.add_argument("--labelled", type=int, default=2000, help="labelled triplets")
    p.add_argument("--videos", type=int, default=300, help="unlabelled videos")
    p.add_argument("--selected", type=int, default=500, help="IDM-labelled pairs that are used")
    p.add_argument("--test", type=int, default=400, help="test cases")
    p.add_argument("--validation", type=int, default=100, help="cases on which temperatures are chosen")
    p.add_argument("--idm_steps", type=int, default=250)
    p.add_argument("--fdm_steps", type=int, default=200)
    p.add_argument("--grpo_steps", type=int, default=25)
    p.add_argument("--best_of_n_steps", type=int, default=60)
    p.add_argument("--batch_size", type=int, default=64)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, default=Path("runs/demo"))
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


BUDGET = ("labelled", "videos", "selected", "test", "validation", "idm_steps", "fdm_steps", "grpo_steps")
BUDGET_REST = ("best_of_n_steps", "batch_size")


def main() -> None:
    arguments = parse_with_config(parser())
    from rl import RewindError
    from rl.data.importance import Importance
    from rl.data.triplets_io import write_triplets
    from rl.evaluation.oracle import sample_tasks
    from rl.models.bases import load_base
    from rl.run_folder import claim
    from rl.worlds import load_split
    from trainers import demo
    from trainers.demo_results import measure, report, text_table

    budget = demo.Budget(**{name: getattr(arguments, name) for name in (*BUDGET, *BUDGET_REST)})
    if min(vars(budget).values()) <= 0:
        raise RewindError("every number of the budget must be above 0")
    began = time.monotonic()
    splits = {name: load_split(arguments.world, name) for name in ("train", "validation", "test")}
    vlm = load_base(arguments.base)
    if vlm.image_size != splits["train"].image_size:
        raise RewindError(
            f"{arguments.base} sees {vlm.image_size} pixels and the world {arguments.world} draws "
            f"{splits['train'].image_size}: pretrain a base on the world (pretrain_base.py) and give it as --base"
        )
    output = claim(
        arguments.output, "demo.py", plain(vars(arguments)), inputs=[arguments.base], overwrite=arguments.overwrite
    )
    story = demo.begin(splits, vlm, output, arguments.seed, budget)
    test = demo.triplets_of(splits["test"], sample_tasks(splits["test"], budget.test, arguments.seed), "world")
    write_triplets(test, output / "test")
    demo.train_sft(story, "idm", "idm", story.labelled, budget.idm_steps)
    demo.train_sft(story, "sft", "fdm", story.labelled, budget.fdm_steps)
    demo.train_sft(story, "sft_twice_as_long", "fdm", story.labelled, 2 * budget.fdm_steps)
    demo.mine_and_label(story)
    everything = [*story.labelled, *story.synthetic]
    demo.train_sft(story, "bootstrapped", "fdm", everything, budget.fdm_steps, Importance())
    demo.improve(story)
    with story.stage("evaluation"):
        results = measure(story)
    with story.stage("report"):
        (output / "report.html").write_text(report(story, results), encoding="utf-8")
    seconds = {"total": time.monotonic() - began, **story.seconds}
    results = {"world": results.pop("world"), "seed": results.pop("seed"), "seconds": seconds, **results}
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(text_table(results))
    print(f"{seconds['total']:.0f} s; look at {output / 'report.html'}")


if __name__ == "__main__":
    run(main)
