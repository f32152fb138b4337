"""Token-importance weights from a recognition model (arXiv 2506.06006, "recognition-weighted training").

The paper weights the cross-entropy of target token l by w_l = || z_source,l - z_target,l ||^2, where z are the VLM's
own image features before quantisation: tokens that change count more than those that stay. It gives no normalisation,
so ours is stated here and can be switched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rl.errors import RewindError
from rl.pictures import Picture

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM


@dataclass(frozen=True)
class Importance:
    """How squared feature distances d, [K] a pair, become weights.

    w = floor + min(d / scale, cap), then everything is divided by its mean over the data, so that a learning rate means
    the same with and without weights. `scale` is the mean of d over the data set (`dataset`: pairs with much motion
    weigh more, where the paper's gain is largest), over each sample (`sample`: every pair weighs the same), or 1
    (`none`: the features' own units). Without a floor nothing would teach what should stay as it is; with a low one,
    little does: on the tabletop a floor of 1 kept what should stay where 0.2 did not. Weights pay while a model fails
    to carry out actions; later they cost more of what should stay than they gain (docs/findings/labelled-video.md).

    Raises:
        RewindError: a negative floor, or a cap that is not above 0.
    """

    normalise: Literal["dataset", "sample", "none"] = "dataset"
    floor: float = 2.0
    cap: float = 4.0

    def __post_init__(self) -> None:
        if self.normalise not in ("dataset", "sample", "none"):
            raise RewindError(
                f"importance weights are normalised by 'dataset', 'sample' or 'none', not {self.normalise!r}"
            )
        if self.floor < 0 or not self.cap > 0:
            raise RewindError(f"the floor must be 0 or more and the cap above 0, not {self.floor} and {self.cap}")

    def weights(self, distances: Sequence[Tensor]) -> list[Tensor]:
        """Weights float32 [K] of each pair, mean 1 over the data, from `feature_distances` of all of it."""
        if self.normalise == "sample":
            distances = [distance_K / distance_K.mean().clamp(min=1e-12) for distance_K in distances]
        flat = torch.cat(list(distances))
        if self.normalise == "dataset":
            flat = flat / flat.mean().clamp(min=1e-12)
        weights = self.floor + flat.clamp(max=self.cap)
        mean = weights.mean()
        weights = weights / mean if float(mean) > 0 else torch.ones_like(weights)
        return list(weights.split([len(distance_K) for distance_K in distances]))


def feature_distances(
    vlm: UnifiedVLM, sources: Sequence[Picture], targets: Sequence[Picture], chunk: int = 64
) -> list[Tensor]:
    """|| z_source,l - z_target,l ||^2, float32 [K] a pair, a chunk at a time: the features themselves are far larger.

    Where pictures keep their own sizes, a target gets its source's.
    """
    found: list[Tensor] = []
    for start in range(0, len(sources), chunk):
        part = slice(start, start + chunk)
        sizes = vlm.codes(sources[part]) if vlm.picture_size.own else None
        before, after = vlm.features_of(sources[part]), vlm.features_of(targets[part], sizes)
        found += [(a.float() - b.float()).pow(2).sum(-1).cpu() for a, b in zip(before, after, strict=True)]
    return found
