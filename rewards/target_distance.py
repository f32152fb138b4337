"""Minus the distance to the true target, where it is known: to pictures what NORA-1.5's distance to the recorded action
(arXiv 2511.14659) is to actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rewards.contract import pictures_of
from rl.errors import RewindError
from rl.models.inputs import check_views, token_ids
from rl.pictures import Picture
from rl.triplets import Candidate

MEASURES = ("tokens", "pixels", "features")


class TargetDistance:
    """`target_distance`: 0 at best; None where the true target is unknown.

    Args:
        measure: 'tokens', the share of image tokens that differ (down to -1); 'pixels', the mean absolute difference
            of the decoded picture, 0..1 (down to -1); 'features', the mean Euclidean distance a token between the
            pictures' features before quantisation, in the tokenizer's own unit.
    """

    name = "target_distance"

    def __init__(self, measure: str = "tokens") -> None:
        if measure not in MEASURES:
            raise RewindError(f"target_distance measures {', '.join(MEASURES)}, not '{measure}'")
        self.measure = measure

    def __call__(self, candidates: Sequence[Candidate], target_image: Sequence[Picture | None]) -> list[float | None]:
        known = [(number, target) for number, target in enumerate(target_image) if target is not None]
        scores: list[float | None] = [None] * len(candidates)
        if known:
            distances = self._distances([candidates[n] for n, _ in known], [target for _, target in known])
            for (number, _), distance in zip(known, distances, strict=True):
                scores[number] = -float(distance)
        return scores

    def _distances(self, candidates: Sequence[Candidate], targets: Sequence[Picture]) -> np.ndarray:
        """Float [N]."""
        vlm, sizes = candidates[0].backbone, [candidate.codes for candidate in candidates]
        check_views(targets, sizes)
        if self.measure == "tokens":
            true_ids = token_ids(vlm, targets, sizes)
            return np.array([(np.array(a) != np.array(b)).mean() for a, b in zip(sizes, true_ids, strict=True)])
        drawn = pictures_of(candidates)
        if self.measure == "pixels":
            truth = [vlm.to_array(target, ids.grid) for target, ids in zip(targets, sizes, strict=True)]
            return np.array(
                [
                    np.abs(np.asarray(image) - right.astype(float)).mean() / 255
                    for image, right in zip(drawn, truth, strict=True)
                ]
            )
        pairs = zip(vlm.features_of(drawn, sizes), vlm.features_of(targets, sizes), strict=True)
        return np.array([float(torch.linalg.vector_norm(a - b, dim=-1).mean()) for a, b in pairs])
