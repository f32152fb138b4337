"""Groups and advantages of image tokens: which groups teach something, and what is done to TRL's centred rewards.

Pure functions; rows of a group stand together. _B sample, _K image token.

With rollouts of M steps a group of G trajectories is G x M rows, the steps of a trajectory one after the other. What is
compared with one another are the G predictions of one step, so `by_step` brings those together and the other functions
then take them for groups of G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

TIE = 1e-6
"""Totals and advantages that differ by less are alike."""
AdvantageWeights = Literal["none", "target", "group", "own"]
Credit = Literal["reward_to_go", "trajectory"]
CREDITS: tuple[Credit, ...] = get_args(Credit)


def parts_of_groups(first: int, count: int, group: int) -> list[tuple[int, range]]:
    """(first row, members) of the groups in `count` rows from row `first` on: a group may begin in another process."""
    parts, row = [], first
    while row < first + count:
        stop = min(row - row % group + group, first + count)
        parts.append((row, range(row % group, row % group + stop - row)))
        row = stop
    return parts


def groups_span(rows: int, group: int, processes: int) -> bool:
    """Whether some group of `group` rows is divided among processes that take `rows` rows each, one after the other."""
    return processes > 1 and rows % group != 0


def by_step(rows_B: Tensor, group: int, steps: int) -> Tensor:
    """Rows [B, ...] of trajectories -> the same rows, the `group` predictions of one step together."""
    return rows_B.view(-1, group, steps, *rows_B.shape[1:]).transpose(1, 2).flatten(0, 2)


def by_trajectory(rows_B: Tensor, group: int, steps: int) -> Tensor:
    """What `by_step` did, undone."""
    return by_step(rows_B, steps, group)


def trajectory_advantages(
    totals_B: Sequence[float | None], group: int, steps: int, credit: Credit = "reward_to_go"
) -> Tensor:
    """Advantages float32 [B] of the rows of trajectories: what each is credited with, minus the group's mean for it.

    Args:
        totals_B: a total a row, None where it could not be scored.
        group: trajectories a group.
        steps: rows a trajectory.
        credit: `reward_to_go`: a prediction is credited with its own total and those of the steps after it, and the
            mean is that of the same step; `trajectory`: every step with the mean over all steps, as in RLIR (arXiv
            2509.23958).

    Where a total that counts is unknown, so is the credit: the row has advantage 0 and is not part of the mean.
    """
    known = torch.tensor([float("nan") if total is None else total for total in totals_B])
    totals_NGM = known.view(-1, group, steps)
    if credit == "reward_to_go":
        credits_NGM = totals_NGM.flip(2).cumsum(2).flip(2)
    else:
        credits_NGM = totals_NGM.mean(2, keepdim=True).expand_as(totals_NGM)
    return (credits_NGM - credits_NGM.nanmean(1, keepdim=True)).nan_to_num(0.0).flatten()


def dead_groups(totals_B: Sequence[float | None], group: int, steps: int = 1) -> np.ndarray:
    """bool [groups]: those whose known totals are all alike, at every step, or that have none. They teach nothing."""
    known = np.array([np.nan if total is None else total for total in totals_B]).reshape(-1, group, steps)
    highest, lowest = np.nan_to_num(known, nan=-np.inf).max(1), np.nan_to_num(known, nan=np.inf).min(1)
    return ~(highest - lowest > TIE).any(1)


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


def token_weights(changed_BK: Tensor, group: int, kind: AdvantageWeights, floor: float = 0.25) -> Tensor:
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
