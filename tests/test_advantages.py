"""Advantages of image tokens, by hand."""

from __future__ import annotations

import pytest
import torch

from trainers.advantages import (
    dead_groups,
    dead_rows,
    divided_by_spread,
    parts_of_groups,
    shaped,
    token_weights,
)


def test_groups_that_are_all_alike_are_dead() -> None:
    assert dead_rows(torch.tensor([0.0, 0.0, -1.0, 1.0]), 2).tolist() == [True, True, False, False]
    assert dead_rows(torch.tensor([0.5, 0.5, 0.5, 1.5]), 2).tolist() == [True, True, False, False]


def test_groups_may_span_processes() -> None:
    """Groups of 4, 6 rows a process: the second process has the end of one group and a whole one."""
    assert parts_of_groups(0, 6, 4) == [(0, range(4)), (4, range(2))]
    assert parts_of_groups(6, 6, 4) == [(6, range(2, 4)), (8, range(4))]


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
