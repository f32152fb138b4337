"""The reward against candidates that were chosen or made for it: what training will find, found beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl.evaluation.audit import ATTACKED, BEST_OF, ScoreCases, audit
from rl.evaluation.oracle import Task, judge_all
from rl.evaluation.ranking import Estimate, selection
from rl.evaluation.reward_probes import TRUTH, Case
from rl.triplets import Triplet
from rl.world import World

Attack = Callable[..., np.ndarray]
"""`rl.search.attack.greedy`."""


def adversaries(
    fdm: Any,
    triplets: Sequence[Triplet],
    score: ScoreCases,
    attack: Attack,
    estimate: Estimate,
    *,
    threshold: float | None,
    world: World | None = None,
    tasks: Sequence[Task] = (),
    best_of: int = 64,
    queries: int = 256,
    seed: int = 0,
) -> tuple[dict[str, Any], list[list[tuple[Any, str]]]]:
    """The best of many samples by the reward alone, and tokens optimised for it from a copy of the source.

    Args:
        fdm: the `ForwardDynamics` that is to be trained.
        triplets: cases with true targets.
        score: as in `rl.evaluation.audit`.
        attack: as `Attack`.
        estimate: as `rl.evaluation.ranking.Estimate`.
        threshold: the reward's, from the probes.
        world: whose oracle tells right from wrong, with the `tasks` that the triplets are pictures of; then twice as
            many candidates are drawn as the largest N, so that its estimate does not rest on one subset.
        best_of: the largest N.
        queries: of the attack.
        seed: equal seeds, equal candidates.

    Returns:
        `{"probes": entries as in `audit`, "selection": as in `ranking.selection`, with a world}`, and for each triplet
        captioned pictures: source, true target, and both adversaries.
    """
    vlm = fdm.backbone
    sources, actions = [t.source for t in triplets], [t.action for t in triplets]
    drawn = fdm.sample(sources, actions, best_of * (2 if world is not None else 1), seed=seed)
    drawn_SGK = np.stack([[candidate.ids for candidate in group] for group in drawn])
    source_SK = vlm.encode(sources).cpu().numpy()
    target_SK = vlm.encode([t.target for t in triplets if t.target is not None]).cpu().numpy()

    def told(groups: Sequence[np.ndarray]) -> Sequence[Sequence[float | None]]:
        rows = [
            [Case(t.source, t.action, ids, t.target, t.task, t.more) for ids in group]
            for t, group in zip(triplets, groups, strict=True)
        ]
        return score(rows)

    def scored(groups: Sequence[np.ndarray]) -> list[list[float]]:
        return [[float("nan") if x is None else float(x) for x in row] for row in told(groups)]

    both = np.array(scored([np.concatenate([a[None], b]) for a, b in zip(target_SK, drawn_SGK, strict=True)]))
    truth_S, scores_SG = both[:, 0], both[:, 1:]
    ranked = np.where(np.isnan(scores_SG), -np.inf, scores_SG)[:, :best_of]
    rows = np.arange(len(triplets))
    favourite_S = ranked.argmax(1)
    found_SK = attack(source_SK, vlm.layout.image_ids_V.cpu().numpy(), told, queries=queries, seed=seed)
    pairs = np.array(scored([np.stack([a, b]) for a, b in zip(target_SK, found_SK, strict=True)]))
    picked = {BEST_OF: drawn_SGK[rows, favourite_S], ATTACKED: found_SK}
    values = {BEST_OF: (truth_S, scores_SG[rows, favourite_S]), ATTACKED: (pairs[:, 0], pairs[:, 1])}
    images = {kind: vlm.decode(ids_SK) for kind, ids_SK in picked.items()}
    found: dict[str, Any] = {"probes": {}}
    for kind, (truth, fake) in values.items():
        right = None
        if world is not None:
            right = {kind: np.array([j.success for j in judge_all(world, tasks, images[kind])])}
        scores = {TRUTH: truth, kind: fake}
        found["probes"] |= audit(scores, [t.task for t in triplets], right, threshold)["probes"]
    if world is not None:
        flat = vlm.decode(drawn_SGK.reshape(-1, drawn_SGK.shape[-1]))
        judged = judge_all(world, [task for task in tasks for _ in drawn[0]], flat)
        right_SG = np.array([j.success for j in judged]).reshape(scores_SG.shape)
        found["selection"] = selection(scores_SG, right_SG, estimate, best_of)
    pictures = [
        [(t.source, t.action), (t.target, f"truth {truth_S[n]:.2f}")]
        + [(images[kind][n], f"{kind} {values[kind][1][n]:.2f}") for kind in picked]
        for n, t in enumerate(triplets)
    ]
    return found, pictures
