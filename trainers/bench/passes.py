"""`rerank_passes`: passes of the model for one source and eight candidates, with the source as the draft.

It needs a forward model that has learned what stays, so it is measured where one is given: the demo's `sft`. It is
counted, not timed, so that the machine does not matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.models.opening import load_fdm

SCENES, CANDIDATES = 24, 8


def rerank_passes(run: str | Path, scenes: int = SCENES) -> dict[str, Any]:
    """The mean over test scenes of the tabletop at temperature 1, the pass over the prompt included, and what came true
    of what was guessed; without drafts there are as many passes as a picture has tokens.
    """
    from rl.evaluation.oracle import sample_tasks
    from rl.worlds import load_split

    fdm = load_fdm(run)
    tasks = sample_tasks(load_split("tabletop", "test"), scenes, 0)
    for task in tasks:
        fdm.sample(task.source, task.action, CANDIDATES)
    counts, tokens = fdm.counts, fdm.backbone.layout.tokens_per_image
    passes = 1 + counts.passes / len(tasks)
    return {"rerank_passes": passes, "accepted": counts.share, "of": tokens, "scenes": len(tasks)}
