"""What both roles are like after a round, on labelled cases that nobody trains on, by a judge that never trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl.data.tokens.encoding import read_from
from rl.models.opening import load_fdm, load_idm_beside
from rl.triplets import Triplet
from rl.words import words_of
from trainers.grpo.judge import load_judge

SAMPLES = 4
"""Pictures of each case that the judge reads; the same noise in every round."""


def measure(
    fdm: str,
    idm: str,
    judge: str,
    cases: Sequence[Triplet],
    seed: int,
    opening: Mapping[str, Any],
    token_cache: Path | None = None,
) -> dict[str, Any]:
    """Both roles on labelled cases.

    The judge reads the decoded picture, encoded again, so that it shares no tokens with the models.

    Returns:
        `judge`, mean log-probability a token that it gives to the true action, of pictures that the forward model draws
        for it; `judge_by_case`, the same case by case; `copies`, share of them that show the source;
        `exact_match`, share of cases that the inverse model names, greedily, in the true words; `words`, its words a
        sentence; `judge_of_words`, mean log-probability a token that the judge gives to them.
    """
    model = load_fdm(fdm, **opening)
    vlm = model.backbone
    reader = load_judge(judge, vlm, **opening)
    read_from(token_cache, [vlm, reader.backbone], cases)
    sources, actions = [case.source for case in cases], [case.action for case in cases]
    groups = model.sample(sources, actions, SAMPLES, seed=seed)
    images = [np.asarray(candidate.image) for group in groups for candidate in group]
    rows = [number for number in range(len(cases)) for _ in range(SAMPLES)]
    read = reader.score([sources[n] for n in rows], images, [actions[n] for n in rows])
    by_case = np.array(read).reshape(len(cases), SAMPLES).mean(1)
    known = vlm.codes(sources)
    copies = [not vlm.changed(c.ids, known[n]).any() for n, group in enumerate(groups) for c in group]
    near = vlm.same_below
    namer = load_idm_beside(idm, vlm, **opening)
    vlm.same_below = near
    read_from(token_cache, [namer.backbone], cases)
    targets = [case.target for case in cases if case.target is not None]
    said = namer.describe(sources, targets)
    spoken = [n for n, text in enumerate(said) if text.strip()]
    heard: list[float] = []
    if spoken:
        heard = reader.score([sources[n] for n in spoken], [targets[n] for n in spoken], [said[n] for n in spoken])
    return {
        "cases": len(cases),
        "judge": float(by_case.mean()),
        "judge_by_case": by_case.tolist(),
        "copies": float(np.mean(copies)),
        "exact_match": float(np.mean([words_of(a) == words_of(b) for a, b in zip(said, actions, strict=True)])),
        "words": float(np.mean([len(words_of(text)) for text in said])),
        "judge_of_words": float(np.mean(heard)) if heard else None,
    }
