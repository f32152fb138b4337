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
    """How squared feature distances d [N, K] become weights.

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

    def weights(self, distance_NK: Tensor) -> Tensor:
        """Weights float32 [N, K], mean 1 over the data, from `feature_distances` [N, K] of all of it."""
        distance = distance_NK
        if self.normalise == "dataset":
            distance = distance / distance.mean().clamp(min=1e-12)
        elif self.normalise == "sample":
            distance = distance / distance.mean(1, keepdim=True).clamp(min=1e-12)
        weights = self.floor + distance.clamp(max=self.cap)
        mean = weights.mean()
        return weights / mean if float(mean) > 0 else torch.ones_like(weights)


def feature_distances(
    vlm: UnifiedVLM, sources: Sequence[Picture], targets: Sequence[Picture], chunk: int = 64
) -> Tensor:
    """|| z_source,l - z_target,l ||^2, float32 [N, K], a chunk at a time: the features themselves are far larger."""
    found = []
    for start in range(0, len(sources), chunk):
        part = slice(start, start + chunk)
        before, after = vlm.features(sources[part]), vlm.features(targets[part])
        found.append((before.float() - after.float()).pow(2).sum(-1).cpu())
    return torch.cat(found)
