"""Best of N: draw candidates for a source and an action, let rewards choose, keep the best.

python scripts/rerank.py --fdm runs/fdm --idm runs/idm --source photo.png --action "lift the cup" --output runs/best
python scripts/rerank.py --fdm runs/fdm --idm runs/idm --triplets runs/world/triplets.json --output runs/best
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.arguments import mapping, parse_with_config, plain, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fdm", required=True, help="a base by name or folder, or a run folder")
    p.add_argument("--idm", help="the same for the inverse model; rewards that need none can do without")
    p.add_argument("--source", type=Path, help="an image file, with --action")
    p.add_argument("--action", help="what happens, in words")
    p.add_argument("--triplets", type=Path, help="a JSON list in AURORA's format instead of --source and --action")
    p.add_argument("--limit", type=int, help="only the first triplets")
    p.add_argument("--num_candidates", type=int, default=8)
    p.add_argument(
        "--rewards",
        nargs="+",
        default=["idm_likelihood"],
        help="built-in names, file.py:function or package.module:function, each with =WEIGHT if it is not 1",
    )
    p.add_argument("--reward_arguments", type=mapping, help='JSON by reward: \'{"keep_unchanged": {"default": 3}}\'')
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--min_score", type=float, help="abstain below this total")
    p.add_argument("--min_lead", type=float, help="abstain below this lead over the runner-up")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


SHOWN_ROWS, SHOWN_CANDIDATES = 12, 6


def main() -> None:
    arguments = parse_with_config(parser())
    from tqdm.auto import tqdm

    from rewards import load_rewards
    from rl import RewindError, Triplet, load_fdm, load_idm, rerank
    from rl.api import shares_base
    from rl.data.triplets_io import read_triplets
    from rl.images import load_image
    from rl.models.dynamics import check_actions
    from rl.report.grids import sheet
    from rl.run_folder import claim

    one = arguments.source is not None and arguments.action is not None
    if one == (arguments.triplets is not None) or (arguments.source is None) != (arguments.action is None):
        raise RewindError("give either --source and --action, or --triplets")
    if one:
        check_actions([arguments.action])
        triplets = [Triplet(load_image(arguments.source), arguments.action)]
    else:
        triplets = read_triplets(arguments.triplets, arguments.limit)
    fdm = load_fdm(arguments.fdm)
    fdm.check(arguments.num_candidates, arguments.temperature, seed=arguments.seed)
    idm = None
    if arguments.idm is not None:
        idm = load_idm(arguments.idm, fdm.backbone if shares_base(arguments.idm, fdm.backbone) else None)
    actions = [triplet.action for triplet in triplets]
    rewards = load_rewards(arguments.rewards, idm, actions, arguments=arguments.reward_arguments)
    output = claim(
        arguments.output,
        "rerank.py",
        plain(vars(arguments)),
        inputs=[arguments.fdm, arguments.idm, arguments.source, arguments.triplets],
        overwrite=arguments.overwrite,
    )
    rows = []
    with (output / "candidates.jsonl").open("w", encoding="utf-8") as file:
        for number, triplet in enumerate(tqdm(triplets, desc="rerank", disable=one)):
            found = rerank(
                fdm,
                idm,
                triplet.source,
                triplet.action,
                arguments.num_candidates,
                rewards,
                temperature=arguments.temperature,
                seed=arguments.seed,
                task=triplet.task,
                min_score=arguments.min_score,
                min_lead=arguments.min_lead,
            )
            name = f"{number:04d}-best.png"
            found.best.image.save(output / name)
            for rank, scored in enumerate(found.candidates):
                row = {"triplet": number, "action": triplet.action, "rank": rank, "total": scored.total}
                row |= {"scores": scored.scores, "logprob": scored.candidate.logprob}
                row |= {"ids": scored.candidate.ids.tolist(), "image": name if rank == 0 else None}
                row |= {"lead": found.lead, "abstained": found.abstained} if rank == 0 else {}
                file.write(json.dumps(row) + "\n")
            if number < SHOWN_ROWS:
                cells = [(triplet.source, triplet.action)]
                cells += [(triplet.target, "true target")] if triplet.target is not None else []
                shown = found.candidates[:SHOWN_CANDIDATES]
                cells += [(s.image, "no score" if s.total is None else f"{s.total:.3f}") for s in shown]
                rows.append(cells)
    sheet(rows).save(output / "sheet.png")
    print(f"best of {arguments.num_candidates} for {len(triplets)} sources; look at {output / 'sheet.png'}")


if __name__ == "__main__":
    run(main)
