"""Draw next pictures from a forward dynamics model, for one source and action or for a file of triplets.

python scripts/sample.py --fdm tabletop-chameleon --source photo.jpg \\
    --action "move the red circle left" --output runs/sample
python scripts/sample.py --fdm tabletop-chameleon --triplets runs/world/triplets.json --output runs/samples
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_data_flags, check_data_flags, reading
from rl.running.model_flags import add_model_flags, opening


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fdm", required=True, help="a base by name or folder, or a run folder")
    p.add_argument("--source", type=Path, help="an image file, with --action")
    p.add_argument("--action", help="what happens, in words")
    p.add_argument("--triplets", type=Path, help="a data set (docs/guide/data.md) instead of --source and --action")
    p.add_argument("--limit", type=int, help="only the first triplets")
    p.add_argument("--num_samples", type=int, default=4)
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--top_k", type=int)
    p.add_argument("--top_p", type=float)
    p.add_argument("--guidance", nargs="+", type=float, default=[1.0], help="one number, or one a free prompt: 3.0 1.2")
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


SHOWN_ROWS, SHOWN_SAMPLES = 8, 4


def main() -> None:
    arguments = parse_with_config(parser())
    import numpy as np

    from rl import RewindError, Triplet, load_fdm
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.triplet_files import read_triplets
    from rl.models.inputs import check_actions
    from rl.pictures import load_image
    from rl.report.grids import sheet
    from rl.running.run_folder import claim

    one = arguments.source is not None and arguments.action is not None
    if one == (arguments.triplets is not None) or (arguments.source is None) != (arguments.action is None):
        raise RewindError("give either --source and --action, or --triplets")
    if arguments.limit is not None and arguments.limit < 1:
        raise RewindError(f"--limit must be at least 1, not {arguments.limit}")
    check_data_flags(arguments, arguments.triplets)
    left_out: list[LeftOut] = []
    if one:
        check_actions([arguments.action])
        triplets: Sequence[Triplet] = [Triplet(load_image(arguments.source), arguments.action)]
    else:
        triplets = read_triplets(arguments.triplets, arguments.limit, **reading(arguments), left_out=left_out)
    fdm = load_fdm(arguments.fdm, **opening(arguments))
    fdm.backbone.check_can_draw()
    fdm.backbone.check_actions(triplet.action for triplet in triplets)
    names = ("num_samples", "temperature", "top_k", "top_p", "guidance", "seed")
    arguments.guidance = arguments.guidance[0] if len(arguments.guidance) == 1 else arguments.guidance
    settings = {name: getattr(arguments, name) for name in names}
    fdm.check(**settings)
    inputs = [arguments.fdm, arguments.source, arguments.triplets]
    output = claim(arguments.output, "sample.py", plain(vars(arguments)), inputs=inputs, overwrite=arguments.overwrite)
    list_left_out(output, left_out)
    groups = fdm.sample([t.source for t in triplets], [t.action for t in triplets], **settings)
    with (output / "candidates.jsonl").open("w", encoding="utf-8") as file:
        for number, (triplet, group) in enumerate(zip(triplets, groups, strict=True)):
            for candidate_number, candidate in enumerate(group):
                name = f"{number:03d}-{candidate_number:03d}.png"
                candidate.image.save(output / name)
                row = {"triplet": number, "action": triplet.action, "image": name, "logprob": candidate.logprob}
                file.write(json.dumps({**row, "ids": candidate.ids.tolist()}) + "\n")
    backbone = fdm.backbone
    seen = backbone.codes([t.source for t in triplets[:SHOWN_ROWS]])
    rows = []
    for triplet, codes, group in zip(triplets, seen, groups, strict=False):
        again = backbone.decode(np.array([codes]), grid=codes.grid)[0]
        cells = [(triplet.source, triplet.action), (again, "as the model sees it")]
        cells += [(triplet.target, "true target")] if triplet.target is not None else []
        cells += [(c.image, f"log-probability {c.logprob:.1f}") for c in group[:SHOWN_SAMPLES]]
        rows.append(cells)
    sheet(rows).save(output / "sheet.png")
    print(f"{sum(map(len, groups))} pictures in {output}; look at {output / 'sheet.png'}")


if __name__ == "__main__":
    run(main)
