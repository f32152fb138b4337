"""Advantages of image tokens, by hand."""

from __future__ import annotations

import pytest
import torch

from trainers.grpo.advantages import (
    by_step,
    by_trajectory,
    dead_groups,
    dead_rows,
    divided_by_spread,
    groups_span,
    parts_of_groups,
    shaped,
    token_weights,
    trajectory_advantages,
)


def test_groups_that_are_all_alike_are_dead() -> None:
    assert dead_rows(torch.tensor([0.0, 0.0, -1.0, 1.0]), 2).tolist() == [True, True, False, False]
    assert dead_rows(torch.tensor([0.5, 0.5, 0.5, 1.5]), 2).tolist() == [True, True, False, False]


def test_groups_may_span_processes() -> None:
    """Groups of 4, 6 rows a process: the second process has the end of one group and a whole one."""
    assert parts_of_groups(0, 6, 4) == [(0, range(4)), (4, range(2))]
    assert parts_of_groups(6, 6, 4) == [(6, range(2, 4)), (8, range(4))]


def test_a_group_is_divided_where_a_process_begins_inside_it() -> None:
    for rows in range(1, 13):
        for group in range(1, 9):
            for processes in (1, 2, 3):
                parts = [part for p in range(processes) for part in parts_of_groups(p * rows, rows, group)]
                begins_inside = processes > 1 and any(members.start for _, members in parts)
                assert groups_span(rows, group, processes) == begins_inside


def test_totals_that_are_alike_or_missing_are_dead() -> None:
    assert dead_groups([1.0, 1.0, 1.0, 2.0, None, 3.0, None, None], 2).tolist() == [True, False, True, True]
    assert dead_groups([None, 1.0, 2.0], 3).tolist() == [False]


def test_the_spread_has_a_floor() -> None:
    found = divided_by_spread(torch.tensor([-1.0, 1.0, -0.01, 0.01]), 2, floor=0.5)
    assert found.tolist() == pytest.approx([-1 / 2**0.5, 1 / 2**0.5, -0.02, 0.02])


def test_weights_of_the_group_come_from_the_others() -> None:
    changed = torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.bool)
    found = token_weights(changed, 3, "group", floor=0.5)
    # The others' mean maps are (.5, .5), (.5, 0) and (1, .5); with the floor (1, 1), (1, .5), (1.5, 1); mean 1 a row.
    assert found.tolist() == [pytest.approx(row) for row in ([1.0, 1.0], [4 / 3, 2 / 3], [1.2, 0.8])]


def test_a_candidate_does_not_weigh_its_own_tokens() -> None:
    """Trap: weights from the candidate's own change would push changes down harder than copies where they lose."""
    one = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.bool)
    other = one.clone()
    other[0, 0] = True
    assert torch.equal(token_weights(one, 3, "group")[0], token_weights(other, 3, "group")[0])
    assert not torch.equal(token_weights(one, 3, "own")[0], token_weights(other, 3, "own")[0])


def test_shapes() -> None:
    advantages = torch.tensor([-1.0, 1.0])
    assert shaped(advantages, 2) is advantages
    weighted = shaped(advantages, 2, weights_BK=torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    assert weighted.tolist() == [[-0.5, -1.5], [1.0, 1.0]]


TWO_GROUPS = [1.0, 2.0, 3.0, 6.0, 0.0, 1.0, 5.0, 1.0]
"""Two groups of two trajectories of two steps: (1, 2) and (3, 6); (0, 1) and (5, 1)."""


def test_reward_to_go_by_hand() -> None:
    # To go: (3, 2) and (9, 6), means (6, 4); (1, 1) and (6, 1), means (3.5, 1).
    found = trajectory_advantages(TWO_GROUPS, 2, 2)
    assert found.tolist() == [-3.0, -2.0, 3.0, 2.0, -2.5, 0.0, 2.5, 0.0]


def test_the_mean_of_a_trajectory_by_hand() -> None:
    # Means over steps: 1.5 and 4.5, of the group 3; 0.5 and 3, of the group 1.75.
    found = trajectory_advantages(TWO_GROUPS, 2, 2, "trajectory")
    assert found.tolist() == [-1.5, -1.5, 1.5, 1.5, -1.25, -1.25, 1.25, 1.25]


def test_a_step_that_cannot_be_scored_is_no_number() -> None:
    totals = [1.0, None, 3.0, 6.0, None, 2.0]  # three trajectories of two steps
    # To go: (?, ?), (9, 6), (?, 2): a step's own total is not enough where one after it is unknown.
    assert trajectory_advantages(totals, 3, 2).tolist() == [0.0, 0.0, 0.0, 2.0, 0.0, -2.0]
    assert trajectory_advantages(totals, 3, 2, "trajectory").tolist() == [0.0] * 6  # only one is known
    assert trajectory_advantages([None] * 4, 2, 2).tolist() == [0.0] * 4


def test_one_step_is_what_grpo_has() -> None:
    for credit in ("reward_to_go", "trajectory"):
        found = trajectory_advantages([1.0, 2.0, 6.0, 5.0, None, 7.0], 3, 1, credit)  # type: ignore[arg-type]
        assert found.tolist() == [-2.0, -1.0, 3.0, -1.0, 0.0, 1.0]


def test_rows_by_step_and_back() -> None:
    rows = torch.arange(12)  # two groups of three trajectories of two steps
    steps = by_step(rows, 3, 2)
    assert steps.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert by_trajectory(steps, 3, 2).tolist() == rows.tolist()
    pairs = torch.stack([rows, -rows], 1)
    assert by_step(pairs, 3, 2)[:, 1].tolist() == (-steps).tolist()
    assert torch.equal(by_trajectory(by_step(pairs, 3, 2), 3, 2), pairs)


def test_a_group_of_trajectories_is_dead_if_it_is_so_at_every_step() -> None:
    alike_first, alike_always = [1.0, 2.0, 1.0, 3.0], [1.0, 2.0, 1.0, 2.0]
    assert dead_groups(alike_first + alike_always, 2, 2).tolist() == [False, True]
    assert dead_groups([1.0, 2.0, None, 2.0], 2, 2).tolist() == [True]
