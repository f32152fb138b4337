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
from rl.evaluation.rollout_measures import near_copy
from rl.pictures import Views
from rl.triplets import Candidate, Triplet

AT_ONCE, SHOWN = 256, 24
"""Triplets whose pictures are held at once, and predictions that are handed back."""
Rows = list[dict[str, float]]
Scores = dict[str, "float | None"]
"""By the reward's name; None where it cannot score."""
Rate = Callable[[Sequence[tuple[Triplet, Sequence[Candidate]]]], Sequence[Sequence[Scores]]]
"""`rate(groups)`: the scores of each candidate of each triplet."""


def compare(
    fdm: Any,
    idm: Any | None,
    triplets: Sequence[Triplet],
    temperature: float = 1.0,
    seed: int = 0,
    rate: Rate | None = None,
    at_once: int = AT_ONCE,
) -> tuple[dict[str, Any], list[Candidate]]:
    """Measures by task for one prediction a triplet and for the copied source, and the first `SHOWN` predictions.

    A task's entry: `n`; `l1`, mean absolute difference of pixels to the true target (0..1, at the model's size);
    `token_accuracy`, share of image tokens equal to the true target's; `copy_rate`, share of predictions that are the
    source token by token; `near_copy_rate`, share that is it as the monitors see it, which forgive other codes for the
    same and a few tokens (`near_copy`); with an inverse model `idm_likelihood` (mean log-probability a token of the
    action) and `idm_token_f1` (words of its description against the action's; of vectors `idm_match`, 1 minus their
    distance).
    With `rate`, `rewards: {name: {"mean": x, "n": scored}}` of the prediction, of the copied source and of the true
    target, both as the model's tokens. The three of a triplet are scored as one group, so that a reward that compares
    a group's candidates holds them against the same rivals. What a reward cannot score is not in its `n`; without any
    there is no `mean`.

    Pictures and candidates of `at_once` triplets are in memory at a time, of the others their figures.

    Returns:
        `{"tasks": {task: entry, ..., "average": entry}, "copy": {...}}` ('average' is over triplets), with an inverse
        model or `rate` also "truth": what they say of the true targets; and the candidates.

    Raises:
        RewindError: a triplet without a target.
    """
    if not len(triplets):
        raise RewindError("there is no triplet to evaluate on")
    tasks, first, without = list[str](), "", 0
    for triplet in triplets:
        tasks.append(triplet.task or "unnamed")
        if triplet.target is None:
            first, without = first or triplet.action, without + 1
    if without:
        raise RewindError(f"{without} triplets have no target to compare with, the first is '{first}'")
    shown = list[Candidate]()
    rows: dict[str, Rows] = {"tasks": [], "copy": [], **({} if idm is None else {"truth": []})}
    rated: dict[str, list[Scores]] = {} if rate is None else {"tasks": [], "copy": [], "truth": []}
    for start in range(0, len(triplets), at_once):
        part = _Part(fdm, [triplets[n] for n in range(start, min(start + at_once, len(triplets)))], temperature, seed)
        shown += part.drawn[: SHOWN - len(shown)]
        for key, mine in part.measures(idm).items():
            rows[key] += mine
        if rate is not None:
            for group in part.rated(rate):
                for key, scores in zip(rated, group, strict=True):
                    rated[key].append(scores)
        del part  # before the next one is drawn
    found = {key: _by_task(tasks, mine) for key, mine in rows.items()}
    for key, every in rated.items():
        for task, some in _split(tasks, every).items():
            entry = found.setdefault(key, {}).setdefault(task, {"n": len(some)})
            entry["rewards"] = {name: _mean([row[name] for row in some]) for name in some[0]}
    return found, shown


class _Part:
    """Some triplets with a prediction each."""

    def __init__(self, fdm: Any, triplets: Sequence[Triplet], temperature: float, seed: int) -> None:
        self.vlm, self.triplets = fdm.backbone, triplets
        self.sources, self.actions = [t.source for t in triplets], [t.action for t in triplets]
        groups = fdm.sample(self.sources, self.actions, 1, temperature=temperature, seed=seed)
        self.drawn: list[Candidate] = [group[0] for group in groups]
        self.source_ids: list[Codes] = self.vlm.codes(self.sources)
        self.target_ids: list[Codes] = self.vlm.codes([t.target for t in triplets], self.source_ids)

    def measures(self, idm: Any | None) -> dict[str, Rows]:
        """A row a triplet of its prediction, of its source and, with an inverse model, of its target."""
        targets = [self._seen(t.target, ids) for t, ids in zip(self.triplets, self.source_ids, strict=True)]
        copies = [self._seen(*pair) for pair in zip(self.sources, self.source_ids, strict=True)]
        drawn_ids = [candidate.codes for candidate in self.drawn]
        found = {
            "tasks": self._measured(targets, self.drawn, drawn_ids, idm),
            "copy": self._measured(targets, copies, self.source_ids, idm, self.sources),
        }
        if idm is not None:
            stored = [t.target for t in self.triplets]
            found["truth"] = self._measured(targets, targets, self.target_ids, idm, stored)
        return found

    def rated(self, rate: Rate) -> Sequence[Sequence[Scores]]:
        """Scores of prediction, copied source and true target of each triplet."""
        copies, truths = (
            # Nobody drew these, so a reward that asks for their likelihood finds none.
            [Candidate(np.array(one), np.zeros(len(one), np.float32), self.vlm, one.grid) for one in row]
            for row in (self.source_ids, self.target_ids)
        )
        return rate(list(zip(self.triplets, zip(self.drawn, copies, truths, strict=True), strict=True)))

    def _seen(self, picture: Any, ids: Codes) -> Any:
        """As the model sees it: of several views each by itself."""
        array = self.vlm.to_array(picture, ids.grid)
        return array if ids.grid.views == 1 else Views.of_stack(array, ids.grid.views)

    def _measured(
        self,
        targets: Sequence[Any],
        pictures: Sequence[Any],
        ids: Sequence[Codes],
        idm: Any | None,
        stored: Sequence[Any] = (),
    ) -> Rows:
        """`stored`: the same pictures where they lie, whose codes a token cache may know."""
        rows = [
            {
                "l1": float(np.abs(np.asarray(picture).astype(float) - np.asarray(target)).mean() / 255),
                "token_accuracy": float(np.mean(np.array(mine) == np.array(right))),
                "copy_rate": float(mine == source),
                "near_copy_rate": float(near_copy(self.vlm, np.array(mine), np.array(source))),
            }
            for picture, target, mine, right, source in zip(
                pictures, targets, ids, self.target_ids, self.source_ids, strict=True
            )
        ]
        if idm is not None:
            asked = list(stored if stored and idm.backbone is self.vlm else pictures)
            said = idm.describe(self.sources, asked)
            likelihood = idm.score(self.sources, asked, self.actions)
            for row, words, score, action in zip(rows, said, likelihood, self.actions, strict=True):
                row |= {"idm_likelihood": score, **_likeness(idm, words, action)}
        return rows


def _mean(scores: Sequence[float | None]) -> dict[str, float]:
    known = [score for score in scores if score is not None]
    return {"mean": float(np.mean(known)), "n": len(known)} if known else {"n": 0}


def _likeness(idm: Any, said: str, action: str) -> dict[str, float]:
    """How near a description comes to the action."""
    asked, found = vector_of(action), vector_of(said)
    if asked is None or found is None:
        return {"idm_token_f1": token_f1(said, action)}
    return {"idm_match": idm.backbone.actions.bins.likeness(asked, found)}


def _by_task(tasks: Sequence[str], rows: Rows) -> dict[str, dict[str, Any]]:
    return {
        name: {"n": len(part), **{key: float(np.mean([row[key] for row in part])) for key in part[0]}}
        for name, part in _split(tasks, rows).items()
    }


def _split(tasks: Sequence[str], rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows by the task of their triplet, and all of them as 'average'."""
    parts: dict[str, list[Any]] = {}
    for task, row in zip(tasks, rows, strict=True):
        parts.setdefault(task, []).append(row)
    return {**parts, "average": list(rows)}
