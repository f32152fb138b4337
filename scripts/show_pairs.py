"""Pairs of pictures to look at before training on them: source, target, optical flow and token weights of each.

python scripts/show_pairs.py --base runs/real-base --triplets aurora-bench-sample/test.json --output runs/shown
python scripts/show_pairs.py --base tabletop-chameleon --triplets runs/pairs/pairs.json --output runs/shown
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_data_flags, reading
from rl.running.model_flags import add_model_flags, opening

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from rl.models.unified import UnifiedVLM
    from rl.pictures import Picture

FULL_COLOUR = 50.0
"""Thousandths of a picture's longer side: motion of that length or more has the full colour."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True, help="a base or a run folder, whose image tokenizer weighs the tokens")
    p.add_argument("--triplets", type=Path, required=True, help="triplets, or pairs without words")
    p.add_argument("--limit", type=int, default=40, help="only the first pairs; weights are relative to these")
    p.add_argument("--cell", type=int, default=96, help="pixels along one side of each picture on the sheet")
    add_data_flags(p)
    add_model_flags(p, base=False, draws=False)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    import torch

    from rl import RewindError, load_fdm
    from rl.data.importance import Importance, feature_distances
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.triplet_files import read_triplets
    from rl.report.grids import sheet
    from rl.running.run_folder import claim

    if a.limit < 1 or not 32 <= a.cell <= 1024:
        raise RewindError("--limit must be at least 1, and --cell from 32 to 1024 pixels")
    left_out: list[LeftOut] = []
    pairs = read_triplets(a.triplets, a.limit, named=False, with_targets=True, **reading(a), left_out=left_out)
    how = {name: value for name, value in opening(a).items() if name != "base"}
    vlm = load_fdm(a.base, **how).backbone
    output = claim(a.output, "show_pairs.py", plain(vars(a)), inputs=[a.base, a.triplets], overwrite=a.overwrite)
    list_left_out(output, left_out)
    targets = [pair.target for pair in pairs if pair.target is not None]
    weights = Importance().weights(feature_distances(vlm, [pair.source for pair in pairs], targets))
    least, most = (float(end) for end in torch.cat(weights).aminmax())
    cells: list[Sequence[tuple[Picture, str]]] = []
    with (output / "pairs.jsonl").open("w", encoding="utf-8") as lines:
        for number, (pair, target, weights_K) in enumerate(zip(pairs, targets, weights, strict=True)):
            shades_K = (weights_K - least) / max(most - least, 1e-6)
            before, after, flow, warm, figures = _looked_at(vlm, pair.source, target, shades_K, a.cell)
            figures |= {name: round(float(getattr(weights_K, name)()), 3) for name in ("min", "max", "mean")}
            named = {"pair": number, "task": pair.task or pair.label, "action": pair.action}
            lines.write(json.dumps({**named, **figures}) + "\n")
            words = f"{number} {named['task'] or ''}: {pair.action}"
            moved = f"motion {figures['motion']:.1f}, {figures['changed']:.0%} changed"
            weighs = f"weights {figures['min']:.1f} to {figures['max']:.1f}, mean {figures['mean']:.1f}"
            cells.append([(before, words), (after, "target"), (flow, moved), (warm, weighs)])
    two = [[cell for row in cells[start : start + 2] for cell in row] for start in range(0, len(cells), 2)]
    sheet(two, a.cell).save(output / "sheet.jpg", quality=65)
    print(f"{len(cells)} pairs; look at {output / 'sheet.jpg'}")


def _looked_at(
    vlm: UnifiedVLM, source: Picture, target: Picture, shades_K: Tensor, cell: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Source, target, flow and weights as pictures in the frame in which the model is given them, and the motion."""
    from rl.data.video.keyframes import FLOW_SIDE, MotionMeter
    from rl.pictures import to_array
    from rl.report.changes import flow_picture, heat_over

    grid = vlm.grid_of(source)
    rows, columns = grid.rows * grid.views, grid.columns
    each = max(1, max(cell, FLOW_SIDE) // max(rows, columns))
    before, after = (to_array(picture, (rows * each, columns * each)) for picture in (source, target))
    step, flow = MotionMeter().between(before, after)
    warm = heat_over(after, shades_K.reshape(rows, columns).numpy())
    figures = {"motion": round(step.motion, 3), "changed": round(step.changed, 3)}
    return before, after, flow_picture(flow, FULL_COLOUR), warm, figures


if __name__ == "__main__":
    run(main)
