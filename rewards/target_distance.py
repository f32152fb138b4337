"""Minus the distance to the true target, where it is known: to pictures what NORA-1.5's distance to the recorded action
(arXiv 2511.14659) is to actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rewards.contract import pictures_of
from rl.errors import RewindError
from rl.models.inputs import token_ids
from rl.pictures import Picture, to_array
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
        vlm = candidates[0].backbone
        if self.measure == "tokens":
            drawn_NK = np.stack([candidate.ids for candidate in candidates])
            return (drawn_NK != np.array(token_ids(vlm, targets))).mean(1)
        drawn = pictures_of(candidates)
        if self.measure == "pixels":
            truth_NHWC = np.stack([to_array(target, vlm.image_size) for target in targets]).astype(float)
            return np.abs(np.stack([np.asarray(image) for image in drawn]) - truth_NHWC).mean((1, 2, 3)) / 255
        return torch.linalg.vector_norm(vlm.features(drawn) - vlm.features(targets), dim=-1).mean(1).cpu().numpy()
