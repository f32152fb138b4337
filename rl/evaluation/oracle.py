"""What a world's oracle says of a base: how well its tokenizer keeps a scene, its words describe one, and how often a
forward dynamics model draws a right outcome."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from rl.evaluation.intervals import wilson
from rl.spilled import SpilledArrays
from rl.triplets import Triplet
from rl.words import words_of
from rl.world import Judgement, World, draw_task

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

T = TypeVar("T")
AT_ONCE, SHOWN = 256, 24
"""Tasks whose predictions are held at once, and predicted pictures that are handed back."""
READ_AT_ONCE = 1024
"""Tasks whose codes are held at once while they are captioned, named or scored."""


@dataclass(frozen=True)
class Task:
    """One test case of a world: a scene, an action, one right outcome, and the pictures of both, uint8 [H, W, 3]."""

    scene: Any
    action: str
    outcome: Any
    source: np.ndarray
    target: np.ndarray


def sample_tasks(world: World, count: int, seed: int | Sequence[int], kept: SpilledArrays | None = None) -> list[Task]:
    """`count` tasks of the world's split; equal seeds give equal tasks. Warns where most of them are repeated ones.

    With `kept`, their pictures lie there, and memory holds the scenes alone.
    """
    rng = np.random.default_rng(seed)
    drawn, pictures = list[tuple[Any, str, Any]](), list[np.ndarray]()
    keep = pictures.append if kept is None else kept.append
    for _ in range(count):
        scene, action = draw_task(world, rng)
        outcomes = world.outcomes(scene, action)
        outcome = outcomes[int(rng.integers(len(outcomes)))]
        drawn.append((scene, action, outcome))
        for state in (scene, outcome):
            keep(world.render(state, rng))
    each = iter(pictures if kept is None else kept.arrays())
    tasks = [Task(*case, next(each), next(each)) for case in drawn]
    _warn_of_repetition(world, tasks)
    return tasks


def _warn_of_repetition(world: World, tasks: Sequence[Task]) -> None:
    try:
        distinct = len({(task.scene, task.action) for task in tasks})
    except TypeError:  # no world's scenes should be unhashable, but nothing else here needs it
        return
    if 2 * distinct < len(tasks):
        split = f" in its split '{world.split_name}'" if hasattr(world, "split_name") else ""
        warnings.warn(
            f"the world '{world.name}' has few cases (scene and action){split}: {distinct} distinct ones were found, "
            f"{len(tasks)} asked for, so they repeat, and figures are less certain than their number says",
            stacklevel=3,
        )


def judge_all(world: World, tasks: Sequence[Task], images: np.ndarray) -> list[Judgement]:
    """One judgement a task for pictures uint8 [N, H, W, 3]; uses the world's batched judge if it has one."""
    together = getattr(world, "judge_many", None)
    if together is not None:
        return list(together([t.scene for t in tasks], [t.action for t in tasks], images))
    return [world.judge(t.scene, t.action, image) for t, image in zip(tasks, images, strict=True)]


def summary(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Means of what an oracle said: success 0..1 with its 95 % interval, editing, minimality, judge 0..10, and n."""
    return {
        "success": float(np.mean([j.success for j in judgements])),
        "editing": float(np.mean([j.editing for j in judgements])),
        "minimality": float(np.mean([j.minimality for j in judgements])),
        "judge": float(np.mean([j.judge for j in judgements])),
        "n": len(judgements),
        "ci95": list(wilson(sum(j.success for j in judgements), len(judgements))),
    }


def tokenizer_ceiling(vlm: UnifiedVLM, world: World, tasks: Sequence[Task]) -> dict[str, Any]:
    """How the true targets are judged after encoding and decoding: no model on this tokenizer can do better."""
    judged = list[Judgement]()
    for part in _parts(tasks, AT_ONCE):
        judged += judge_all(world, part, vlm.decode(vlm.encode([task.target for task in part])))
    return summary(judged)


def fdm_outcomes(
    fdm: Any, world: World, tasks: Sequence[Task], temperature: float = 1.0, seed: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """One sample a task by a `ForwardDynamics`, judged, with the copy rate (all tokens as in the source); and the first
    `SHOWN` pictures, uint8 [N, H, W, 3].
    """
    judged, copies, shown = list[Judgement](), list[np.ndarray](), list[np.ndarray]()
    for part in _parts(tasks, AT_ONCE):
        sources = [task.source for task in part]
        groups = fdm.sample(sources, [task.action for task in part], 1, temperature=temperature, seed=seed)
        ids = np.stack([group[0].ids for group in groups])
        copies.append((ids == fdm.backbone.encode(sources).cpu().numpy()).all(1))
        images = fdm.backbone.decode(torch.from_numpy(ids))
        judged += judge_all(world, part, images)
        shown += [image.copy() for image in images[: SHOWN - len(shown)]]
    return {**summary(judged), "copy_rate": float(np.concatenate(copies).mean())}, np.stack(shown)


def caption_accuracy(
    say: Callable[[Sequence[np.ndarray], Sequence[str]], list[str]], world: World, tasks: Sequence[Task], seed: int = 0
) -> dict[str, float]:
    """Share of scenes captioned right word for word, and share of words that are right at their places.

    `say(pictures, begins)` continues captions. The first word is given, since a base has also learned other sentences
    about a picture.
    """
    rng = np.random.default_rng(seed)
    truths = [str(world.caption(task.scene, rng)).split() for task in tasks]  # type: ignore[attr-defined]
    said = list[list[str]]()
    for part, begins in zip(_parts(tasks, READ_AT_ONCE), _parts(truths, READ_AT_ONCE), strict=True):
        rests = say([task.source for task in part], [truth[0] for truth in begins])
        said += [rest.split() for rest in rests]
    right = [
        sum(a == b for a, b in zip(words, truth[1:], strict=False)) / (len(truth) - 1)
        for words, truth in zip(said, truths, strict=True)
    ]
    whole = [words == truth[1:] for words, truth in zip(said, truths, strict=True)]
    return {"exact": float(np.mean(whole)), "words": float(np.mean(right)), "n": len(tasks)}


def names_the_outcome(world: World, task: Task, said: str) -> bool:
    """Whether a description names an action that leads to the true outcome and is not much vaguer than the true one:
    its right outcomes hold the true one and are at most twice as many.
    """
    outcomes = world.outcomes(task.scene, said) if said else []
    return task.outcome in outcomes and len(outcomes) <= 2 * len(world.outcomes(task.scene, task.action))


def token_f1(said: str, truth: str) -> float:
    """F1 of the words of two sentences, each counted as often as it occurs; 0..1."""
    a, b = Counter(words_of(said)), Counter(words_of(truth))
    common = sum((a & b).values())
    return 2 * common / (sum(a.values()) + sum(b.values())) if common else 0.0


def describe_pairs(idm: Any, world: World, tasks: Sequence[Task]) -> tuple[list[str], list[bool]]:
    """What an `InverseDynamics` says of the true pairs, and whether each names the outcome."""
    said = list[str]()
    for part in _parts(tasks, READ_AT_ONCE):
        said += idm.describe([task.source for task in part], [task.target for task in part])
    return said, [names_the_outcome(world, task, words) for task, words in zip(tasks, said, strict=True)]


def idm_descriptions(idm: Any, world: World, tasks: Sequence[Task]) -> dict[str, Any]:
    """How an `InverseDynamics` names the true pairs: share of exact matches with its 95 % interval, mean token F1."""
    said, right = describe_pairs(idm, world, tasks)
    overlap = [token_f1(words, task.action) for task, words in zip(tasks, said, strict=True)]
    interval = list(wilson(sum(right), len(right)))
    found: dict[str, Any] = {"exact_match": float(np.mean(right)), "ci95": interval}
    found |= {"token_f1": float(np.mean(overlap)), "n": len(tasks)}
    family = getattr(world, "family", None)
    if family is not None:
        families = np.array([family(task.action) for task in tasks])
        found["by_family"] = {f: float(np.mean(np.array(right)[families == f])) for f in sorted(set(families))}
    return found


def are_right(groups: Sequence[Sequence[Any]], world: World, tasks: Sequence[Task]) -> list[list[float]]:
    """Whether each candidate (with `.ids` and `.backbone`) of each task is a success, 1 or 0, by the oracle.

    All of them are decoded at once.
    """
    backbone, size = groups[0][0].backbone, len(groups[0])
    images = backbone.decode(np.stack([candidate.ids for group in groups for candidate in group]))
    judged = judge_all(world, [task for task in tasks for _ in range(size)], images)
    right = [float(j.success) for j in judged]
    return [right[start : start + size] for start in range(0, len(right), size)]


def best_of_n(
    scores: Sequence[Sequence[float | None]],
    right: Sequence[Sequence[float]],
    estimate: Callable[[Sequence[float | None], Sequence[float], int], float],
    numbers: Sequence[int],
) -> dict[str, dict[str, float]]:
    """Success of best of n by a score, and by the oracle itself, as shares by n.

    `scores` and `right` (`are_right`) hold a number a candidate of each task, `estimate(scores, values, n)` the
    expected value of the best of n from all of them (`rl.search.best_of_n.expected_best`).
    """
    return {
        "by_score": {
            str(n): float(np.mean([estimate(s, r, n) for s, r in zip(scores, right, strict=True)])) for n in numbers
        },
        "by_oracle": {str(n): float(np.mean([estimate(r, r, n) for r in right])) for n in numbers},
    }


def _parts(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (things[start : start + size] for start in range(0, len(things), size))


def triplets_of(world: World, tasks: Sequence[Task], provenance: str) -> list[Triplet]:
    """Test cases of a world as triplets."""
    family = getattr(world, "family", lambda action: None)
    return [Triplet(t.source, t.action, t.target, task=family(t.action), provenance=provenance) for t in tasks]
