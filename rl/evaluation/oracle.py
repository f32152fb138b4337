"""What a world's oracle says of a base: how well its tokenizer keeps a scene, its words describe one, and how often a
forward dynamics model draws a right outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rl.data.pretraining import draw_task
from rl.unified import UnifiedVLM
from rl.world import Judgement, World


@dataclass(frozen=True)
class Task:
    """One test case of a world: a scene, an action, one right outcome, and the pictures of both, uint8 [H, W, 3]."""

    scene: Any
    action: str
    outcome: Any
    source: np.ndarray
    target: np.ndarray


def sample_tasks(world: World, count: int, seed: int) -> list[Task]:
    """`count` tasks of the world's split; equal seeds give equal tasks."""
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        scene, action = draw_task(world, rng)
        outcomes = world.outcomes(scene, action)
        outcome = outcomes[int(rng.integers(len(outcomes)))]
        tasks.append(Task(scene, action, outcome, world.render(scene, rng), world.render(outcome, rng)))
    return tasks


def judge_all(world: World, tasks: Sequence[Task], images: np.ndarray) -> list[Judgement]:
    """One judgement a task for pictures uint8 [N, H, W, 3]; uses the world's batched judge if it has one."""
    together = getattr(world, "judge_many", None)
    if together is not None:
        return list(together([t.scene for t in tasks], [t.action for t in tasks], images))
    return [world.judge(t.scene, t.action, image) for t, image in zip(tasks, images, strict=True)]


def summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Means of what an oracle said: success 0..1, editing, minimality and judge 0..10, and n."""
    return {
        "success": float(np.mean([j.success for j in judgements])),
        "editing": float(np.mean([j.editing for j in judgements])),
        "minimality": float(np.mean([j.minimality for j in judgements])),
        "judge": float(np.mean([j.judge for j in judgements])),
        "n": len(judgements),
    }


def tokenizer_ceiling(vlm: UnifiedVLM, world: World, tasks: Sequence[Task]) -> dict[str, float]:
    """How the true targets are judged after encoding and decoding: no model on this tokenizer can do better."""
    decoded = vlm.decode(vlm.encode([task.target for task in tasks]))
    return summary(judge_all(world, tasks, decoded))


def fdm_outcomes(
    fdm: Any, world: World, tasks: Sequence[Task], temperature: float = 1.0, seed: int = 0
) -> tuple[dict[str, float], np.ndarray]:
    """One sample a task by a `ForwardDynamics`, judged, with the copy rate (all tokens as in the source); and the
    pictures, uint8 [N, H, W, 3].
    """
    sources = [task.source for task in tasks]
    groups = fdm.sample(sources, [task.action for task in tasks], 1, temperature=temperature, seed=seed)
    ids = np.stack([group[0].ids for group in groups])
    copies = (ids == fdm.backbone.encode(sources).cpu().numpy()).all(1)
    images = fdm.backbone.decode(torch.from_numpy(ids))
    return {**summary(judge_all(world, tasks, images)), "copy_rate": float(copies.mean())}, images


def caption_accuracy(
    say: Callable[[Sequence[np.ndarray], Sequence[str]], list[str]], world: World, tasks: Sequence[Task], seed: int = 0
) -> dict[str, float]:
    """Share of scenes captioned right word for word, and share of words that are right at their places.

    `say(pictures, begins)` continues captions. The first word is given, since a base has also learned other sentences
    about a picture.
    """
    rng = np.random.default_rng(seed)
    truths = [str(world.caption(task.scene, rng)).split() for task in tasks]  # type: ignore[attr-defined]
    said = [rest.split() for rest in say([task.source for task in tasks], [truth[0] for truth in truths])]
    right = [
        sum(a == b for a, b in zip(words, truth[1:], strict=False)) / (len(truth) - 1)
        for words, truth in zip(said, truths, strict=True)
    ]
    whole = [words == truth[1:] for words, truth in zip(said, truths, strict=True)]
    return {"exact": float(np.mean(whole)), "words": float(np.mean(right)), "n": len(tasks)}
