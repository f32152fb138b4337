"""`rerank_passes`: passes of the model for one source and eight candidates, with the source as the draft.

It needs a forward model that has learned what stays, so it is measured where one is given: the demo's `sft`, or one of
yours on your triplets. It is counted, not timed; on a GPU a draft that saves too few passes is given up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.data.triplet_files import read_triplets
from rl.models.opening import load_fdm

SCENES, CANDIDATES = 24, 8


def rerank_passes(run: str | Path, triplets: Path | None = None, scenes: int = SCENES) -> dict[str, Any]:
    """The mean over so many triplets of a data set at temperature 1, or over test scenes of the tabletop, the pass over
    the prompt included, and what came true of what was guessed; without drafts there are as many passes as a picture
    has tokens.
    """
    fdm, cases = load_fdm(run), _tabletop(scenes) if triplets is None else read_triplets(triplets, scenes)
    for case in cases:
        fdm.sample(case.source, case.action, CANDIDATES)
    counts, tokens = fdm.counts, fdm.backbone.layout.tokens_per_image
    passes = 1 + counts.passes / len(cases)
    on = {"fdm": str(run), "triplets": "tabletop" if triplets is None else str(triplets)}
    return {"rerank_passes": passes, "accepted": counts.share, "of": tokens, "scenes": len(cases), **on}


def _tabletop(scenes: int) -> list[Any]:
    from rl.evaluation.oracle import sample_tasks
    from rl.worlds import load_split

    return list(sample_tasks(load_split("tabletop", "test"), scenes, 0))
