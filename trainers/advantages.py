"""Groups and advantages of image tokens: which groups teach something, and what is done to TRL's centred rewards.

Pure functions; rows of a group stand together. _B sample, _K image token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

TIE = 1e-6
"""Totals and advantages that differ by less are alike."""
Importance = Literal["none", "target", "group", "own"]


def parts_of_groups(first: int, count: int, group: int) -> list[tuple[int, range]]:
    """(first row, members) of the groups in `count` rows from row `first` on: a group may begin in another process."""
    parts, row = [], first
    while row < first + count:
        stop = min(row - row % group + group, first + count)
        parts.append((row, range(row % group, row % group + stop - row)))
        row = stop
    return parts


def dead_groups(totals_B: Sequence[float | None], group: int) -> np.ndarray:
    """bool [groups]: those whose known totals are all alike, or that have none. They teach nothing."""
    known = np.array([np.nan if total is None else total for total in totals_B]).reshape(-1, group)
    highest, lowest = np.nan_to_num(known, nan=-np.inf).max(1), np.nan_to_num(known, nan=np.inf).min(1)
    return ~(highest - lowest > TIE)


def dead_rows(advantages_B: Tensor, group: int) -> Tensor:
    """bool [B]: rows of groups whose rewards are all alike. They teach nothing, while a KL term would still pull."""
    by_group = advantages_B.view(-1, group)
    alike = by_group.amax(1) - by_group.amin(1) < TIE  # not 0 itself: centring over the batch moves a dead group
    return alike.repeat_interleave(group)


def divided_by_spread(advantages_B: Tensor, group: int, floor: float) -> Tensor:
    """Centred rewards [B] / max(standard deviation of their group, floor).

    Without a floor (arXiv 2402.03300 divides by the deviation alone) noise in a group that is nearly alike becomes as
    large as signal in another.
    """
    spread = advantages_B.view(-1, group).std(1).clamp(min=floor)
    return advantages_B / spread.repeat_interleave(group)


def token_weights(changed_BK: Tensor, group: int, kind: Importance, floor: float = 0.25) -> Tensor:
    """Weights float32 [B, K] for advantages, mean 1 a row: tokens that change weigh more (after arXiv 2506.06006).

    Args:
        changed_BK: bool; `target`: where the true target differs from the source; else where the candidate does.
        group: candidates a group.
        kind: `target` and `group` share their weights in a group (`group`: the mean map of the *other* candidates);
            `own` takes the candidate's own map, which drives towards copying, since changes then count more where
            they lose: for comparison only.
        floor: weight of a token that never changes, before normalisation.
    """
    maps = changed_BK.float()
    if kind == "group":
        by_group = maps.view(-1, group, maps.shape[1])
        maps = ((by_group.sum(1, keepdim=True) - by_group) / (group - 1)).flatten(0, 1)
    weights = maps + floor
    return weights / weights.mean(1, keepdim=True)


def shaped(
    advantages_B: Tensor, group: int, *, spread_floor: float | None = None, weights_BK: Tensor | None = None
) -> Tensor:
    """Advantages as the loss takes them: [B], or [B, K] with weights."""
    found = advantages_B if spread_floor is None else divided_by_spread(advantages_B, group, spread_floor)
    return found if weights_BK is None else found[:, None] * weights_BK.to(torch.float32)
