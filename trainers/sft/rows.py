"""Triplets as rows of tokens: a prompt, the span that a role predicts, and a weight a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, interleave_datasets
from torch import Tensor

from rl.data.importance import Importance, feature_distances
from rl.errors import RewindError
from rl.models.inputs import token_ids
from rl.models.roles import Role
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.triplets import Candidate, Triplet
from trainers.common.log_probs import IGNORED


def role_rows(
    vlm: UnifiedVLM,
    role: Role,
    triplets: Sequence[Triplet],
    importance: Importance | None = None,
    candidates: Sequence[Candidate] | None = None,
    row_weights: Sequence[float] | None = None,
) -> Dataset:
    """Triplets as rows of `input_ids`, `labels` (-100 in the prompt) and, where asked for, `weights` (0 there).

    `candidates`, one a triplet, are learned in place of the targets, by their own tokens. `weights` come from
    `importance`, token by token, or from `row_weights`, a number a triplet.

    Raises:
        RewindError: no triplet, one without a target, importance weights for the words of an IDM.
    """
    if not triplets:
        raise RewindError("there is no triplet to train on")
    missing = [number for number, triplet in enumerate(triplets) if triplet.target is None]
    if missing and candidates is None:
        raise RewindError(f"triplet {missing[0]} has no target picture, which training needs: leave it out")
    if role == "idm" and importance is not None:
        raise RewindError("token-importance weights belong to image tokens; an IDM predicts words")
    sources = [triplet.source for triplet in triplets]
    targets: Sequence[Picture | Candidate] = candidates or [
        triplet.target for triplet in triplets if triplet.target is not None
    ]
    source_ids = token_ids(vlm, sources)
    target_ids = token_ids(vlm, targets, source_ids)
    weights: list[list[float]] | None = None
    if importance is not None:
        pictures = [target.picture if isinstance(target, Candidate) else target for target in targets]
        weights = [row.tolist() for row in importance.weights(feature_distances(vlm, sources, pictures))]
    if row_weights is not None:
        if importance is not None:
            raise RewindError("give either importance weights or a weight a row")
        weights = [[weight] * len(ids) for weight, ids in zip(row_weights, target_ids, strict=True)]
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": []} | ({"weights": []} if weights else {})
    for number, triplet in enumerate(triplets):
        grammar = vlm.layout.grammar_of(target_ids[number])
        if role == "fdm":
            prompt, span = vlm.fdm_prompt(source_ids[number], triplet.action), vlm.target_span(target_ids[number])
            learned = grammar.spread(target_ids[number], IGNORED)
        else:
            prompt = vlm.idm_prompt(source_ids[number], target_ids[number])
            span = learned = vlm.action_ids(triplet.action)
        rows["input_ids"].append(prompt + span)
        rows["labels"].append([IGNORED] * len(prompt) + learned)
        if weights is not None:
            given = weights[number] if role == "idm" else grammar.spread(weights[number], 0.0)
            rows["weights"].append([0.0] * len(prompt) + given)
    return Dataset.from_dict(rows)


class SpanCollator:
    """Pads rows on the right: `input_ids` and `labels` int64 [B, T], `weights` float32 [B, T]."""

    def __init__(self, pad: int) -> None:
        self.fill = {"input_ids": (pad, torch.long), "labels": (IGNORED, torch.long), "weights": (0.0, torch.float32)}

    def __call__(self, rows: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows], dtype=dtype)
            for key, (value, dtype) in self.fill.items()
            if key in rows[0]
        }


def mixed(rows: Dataset, labelled: int, share: float, seed: int) -> Dataset:
    """Rows of which `share` are from behind the first `labelled`; the smaller part is repeated until all are used.

    Raises:
        RewindError: a share that is not between 0 and 1, or nothing to mix in.
    """
    if not 0 < share < 1:
        raise RewindError(f"--synthetic_share must lie between 0 and 1, not be {share}")
    if labelled == len(rows):
        raise RewindError("--synthetic_share needs something to mix in: give --synthetic")
    parts = [rows.select(range(labelled)), rows.select(range(labelled, len(rows)))]
    return interleave_datasets(parts, [1 - share, share], seed=seed, stopping_strategy="all_exhausted")
