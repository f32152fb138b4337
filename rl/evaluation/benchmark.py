"""Predictions against the true targets of triplets, where no world knows what is right: AURORA-Bench, one's own data.

Distances say how near a prediction is to the one target that was recorded, not whether the action happened: a copy of
the source is near wherever little changes, so it is measured beside (as in AURORA-Bench, arXiv 2407.03471). What the
inverse model says of the pictures is a second, also fallible, opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl.actions import vector_of
from rl.codes import Codes
from rl.errors import RewindError
from rl.evaluation.oracle import token_f1
from rl.pictures import Views
from rl.triplets import Candidate, Triplet

Rows = list[dict[str, float]]
Scores = dict[str, "float | None"]
"""By the reward's name; None where it cannot score."""
Rate = Callable[[Sequence[tuple[Triplet, Sequence[Candidate]]]], Sequence[Sequence[Scores]]]
"""`rate(groups)`: the scores of each candidate of each triplet."""


def compare(
    fdm: Any, idm: Any | None, triplets: Sequence[Triplet], temperature: float = 1.0, seed: int = 0
) -> tuple[dict[str, Any], list[Any]]:
    """Measures by task for one prediction a triplet and for the copied source, and the predictions.

    A task's entry: `n`; `l1`, mean absolute difference of pixels to the true target (0..1, at the model's size);
    `token_accuracy`, share of image tokens equal to the true target's; `copy_rate`, share of predictions that are the
    source token by token; with an inverse model `idm_likelihood` (mean log-probability a token of the action) and
    `idm_token_f1` (words of its description against the action's; of vectors `idm_match`, 1 minus their distance).

    Returns:
        `{"tasks": {task: entry, ..., "average": entry}, "copy": {...}}` ('average' is over triplets), with an inverse
        model also "truth": what it says of the true targets; and the candidates.

    Raises:
        RewindError: a triplet without a target.
    """
    without = [t.action for t in triplets if t.target is None]
    if without or not triplets:
        raise RewindError(
            f"{len(without)} triplets have no target to compare with, the first is '{without[0]}'"
            if without
            else "there is no triplet to evaluate on"
        )
    vlm = fdm.backbone
    sources, actions = [t.source for t in triplets], [t.action for t in triplets]
    drawn = [group[0] for group in fdm.sample(sources, actions, 1, temperature=temperature, seed=seed)]
    source_ids = vlm.codes(sources)

    def seen(picture: Any, ids: Codes) -> Any:
        """As the model sees it: of several views each by itself."""
        array = vlm.to_array(picture, ids.grid)
        return array if ids.grid.views == 1 else Views.of_stack(array, ids.grid.views)

    targets = [seen(t.target, ids) for t, ids in zip(triplets, source_ids, strict=True)]
    target_ids = vlm.codes([t.target for t in triplets], source_ids)  # type: ignore[misc]

    def measured(pictures: Sequence[Any], ids: Sequence[Codes], stored: Sequence[Any] = ()) -> Rows:
        """`stored`: the same pictures where they lie, whose codes a token cache may know."""
        images = [np.asarray(picture).astype(float) for picture in pictures]
        rows = [
            {
                "l1": float(np.abs(image - np.asarray(target)).mean() / 255),
                "token_accuracy": float(np.mean(np.array(mine) == np.array(right))),
                "copy_rate": float(mine == source),
            }
            for image, target, mine, right, source in zip(images, targets, ids, target_ids, source_ids, strict=True)
        ]
        if idm is not None:
            asked = list(stored if stored and idm.backbone is vlm else pictures)
            said = idm.describe(sources, asked)
            likelihood = idm.score(sources, asked, actions)
            for row, words, score, action in zip(rows, said, likelihood, actions, strict=True):
                row |= {"idm_likelihood": score, **_likeness(idm, words, action)}
        return rows

    found = {
        "tasks": _by_task(triplets, measured(drawn, [candidate.codes for candidate in drawn])),
        "copy": _by_task(
            triplets, measured([seen(*pair) for pair in zip(sources, source_ids, strict=True)], source_ids, sources)
        ),
    }
    if idm is not None:
        found["truth"] = _by_task(triplets, measured(targets, target_ids, [t.target for t in triplets]))
    return found, drawn


def add_rewards(found: dict[str, Any], triplets: Sequence[Triplet], drawn: Sequence[Candidate], rate: Rate) -> None:
    """Put what rewards say beside the measures of `compare`, by task: `rewards: {name: {"mean": x, "n": scored}}`.

    In "tasks" of the predictions, in "copy" of the copied source, in "truth" of the true target, both as the model's
    tokens. The three of a triplet are scored as one group, so that a reward that compares a group's candidates holds
    them against the same rivals. What a reward cannot score is not in its `n`; without any there is no `mean`.

    Args:
        found: of `compare`, changed in place.
        triplets, drawn: as `compare` was given and has given them.
        rate: asks the rewards.
    """
    vlm = drawn[0].backbone
    source_ids = vlm.codes([t.source for t in triplets])
    target_ids = vlm.codes([t.target for t in triplets], source_ids)  # type: ignore[misc]
    copies, truths = (
        # Nobody drew these, so a reward that asks for their likelihood finds none.
        [Candidate(np.array(one), np.zeros(len(one), np.float32), vlm, one.grid) for one in row]
        for row in (source_ids, target_ids)
    )
    groups = list(zip(triplets, zip(drawn, copies, truths, strict=True), strict=True))
    rated = rate(groups)
    for place, key in enumerate(("tasks", "copy", "truth")):
        by_task = _split(triplets, [group[place] for group in rated])
        for task, rows in by_task.items():
            entry = found.setdefault(key, {}).setdefault(task, {"n": len(rows)})
            entry["rewards"] = {name: _mean([row[name] for row in rows]) for name in rows[0]}


def _mean(scores: Sequence[float | None]) -> dict[str, float]:
    known = [score for score in scores if score is not None]
    return {"mean": float(np.mean(known)), "n": len(known)} if known else {"n": 0}


def _likeness(idm: Any, said: str, action: str) -> dict[str, float]:
    """How near a description comes to the action."""
    asked, found = vector_of(action), vector_of(said)
    if asked is None or found is None:
        return {"idm_token_f1": token_f1(said, action)}
    return {"idm_match": idm.backbone.actions.bins.likeness(asked, found)}


def _by_task(triplets: Sequence[Triplet], rows: Rows) -> dict[str, dict[str, float]]:
    return {
        name: {"n": len(part), **{key: float(np.mean([row[key] for row in part])) for key in part[0]}}
        for name, part in _split(triplets, rows).items()
    }


def _split(triplets: Sequence[Triplet], rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows by the task of their triplet, and all of them as 'average'."""
    tasks = [triplet.task or "unnamed" for triplet in triplets]
    parts = {task: [row for row, t in zip(rows, tasks, strict=True) if t == task] for task in dict.fromkeys(tasks)}
    return {**parts, "average": list(rows)}
