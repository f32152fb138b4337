"""Token-importance weights from a recognition model (arXiv 2506.06006, "recognition-weighted training").

The paper weights the cross-entropy of target token l by w_l = || z_source,l - z_target,l ||^2, where z are the VLM's
own image features before quantisation: tokens that change count more than those that stay. It gives no normalisation,
so ours is stated here and can be switched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rl.errors import RewindError
from rl.pictures import Picture

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

AT_ONCE = 1 << 20
"""Numbers whose mean is taken at once: 4 MiB of them."""


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
        fitted = self.fitted(distances)
        return [fitted.of(distance_K) for distance_K in distances]

    def fitted(self, distances: Iterable[Tensor]) -> TokenWeights:
        """What turns one pair's distances into weights; those of all pairs are read twice, and never kept at once.

        Args:
            distances: float32 [K] of each pair, in an object that can be gone through again.
        """
        each = TokenWeights(self)
        if self.normalise == "dataset":
            each = replace(each, scale=_mean(distances).clamp(min=1e-12))
        mean = _mean(each.of(distance_K) for distance_K in distances)
        return replace(each, mean=mean)


@dataclass(frozen=True)
class TokenWeights:
    """Distances of a pair -> its weights, with what all pairs of a data set have in common, float32 each."""

    importance: Importance
    scale: Tensor | None = None
    mean: Tensor | None = None

    def of(self, distance_K: Tensor) -> Tensor:
        """Weights float32 [K] of a pair from its squared feature distances."""
        if self.mean is not None and not float(self.mean) > 0:
            return torch.ones_like(distance_K)
        if self.importance.normalise == "sample":
            distance_K = distance_K / distance_K.mean().clamp(min=1e-12)
        elif self.scale is not None:
            distance_K = distance_K / self.scale
        weights_K = self.importance.floor + distance_K.clamp(max=self.importance.cap)
        return weights_K if self.mean is None else weights_K / self.mean


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """The mean of all numbers in many tensors, float32; `AT_ONCE` of them or more are summed in parts."""
    means, counts, waiting, size = list[float](), list[int](), torch.zeros(0), 0

    def summed() -> Tensor:
        mean = waiting[:size].mean()
        means.append(float(mean))
        counts.append(size)
        return mean

    for part in parts:
        if size + len(part) > len(waiting):  # one piece of memory, which goes back as one
            before, waiting = waiting, part.new_empty(AT_ONCE + len(part))
            waiting[:size] = before[:size]
        waiting[size : size + len(part)] = part
        size += len(part)
        if size >= AT_ONCE:
            summed()
            size = 0
    if not means:
        return summed()
    if size:
        summed()
    whole = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    return torch.tensor(whole, dtype=torch.float32)


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
