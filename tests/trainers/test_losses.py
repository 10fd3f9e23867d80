"""Arithmetic of groups, written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.losses import best_of_group, group_advantages, groups_without_contrast


def every(rewards: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(rewards, dtype=torch.bool)


def test_advantages_of_a_group_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    std = math.sqrt((4 + 1 + 0 + 9) / 3)  # mean 3, unbiased
    expected = [[value / (std + 1e-4) for value in (-2.0, -1.0, 0.0, 3.0)]]
    torch.testing.assert_close(group_advantages(rewards, every(rewards)), torch.tensor(expected))


def test_each_group_is_its_own_measure():
    rewards = torch.tensor([[0.0, 1.0], [10.0, 30.0]])
    advantages = group_advantages(rewards, every(rewards))
    expected = [[sign * 0.5 / (math.sqrt(0.5) + 1e-4) for sign in (-1, 1)]]
    expected += [[sign * 10 / (math.sqrt(200) + 1e-4) for sign in (-1, 1)]]
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_candidates_without_a_reward_leave_mean_and_deviation():
    rewards = torch.tensor([[1.0, 99.0, 3.0]])
    valid = torch.tensor([[True, False, True]])
    share = 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, valid), torch.tensor([[-share, 0.0, share]]))


def test_scale_by_batch_and_by_nothing():
    rewards = torch.tensor([[0.0, 2.0], [0.0, 6.0]])
    assert group_advantages(rewards, every(rewards), scale="none").tolist() == [[-1.0, 1.0], [-3.0, 3.0]]
    std = math.sqrt((4 + 0 + 4 + 16) / 3) + 1e-4  # mean of all four is 2
    expected = torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]) / std
    torch.testing.assert_close(group_advantages(rewards, every(rewards), scale="batch"), expected)


def test_unknown_scale_is_an_error():
    with pytest.raises(ValueError, match="scale: expected 'group', 'batch' or 'none', found 'median'"):
        group_advantages(torch.zeros(1, 2), every(torch.zeros(1, 2)), scale="median")


def test_floor_keeps_small_differences_small():
    rewards = torch.tensor([[0.500, 0.502]])
    found = group_advantages(rewards, every(rewards), std_floor=0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.001 / 0.1001, 0.001 / 0.1001]]), atol=1e-6, rtol=0)


def test_clip_bounds_outliers():
    rewards = torch.tensor([[0.0] * 63 + [1.0]])
    free = group_advantages(rewards, every(rewards))
    clipped = group_advantages(rewards, every(rewards), clip=5.0)
    assert free.max() > 7
    assert clipped.max() == 5
    assert torch.equal(clipped[0, :63], free[0, :63])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, -0.7])
def test_equal_rewards_give_exactly_zero(value):
    rewards = torch.full((1, 7), value)
    assert (group_advantages(rewards, every(rewards)) == 0).all()


def test_groups_with_fewer_than_two_rewards_have_no_contrast():
    rewards = torch.tensor([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    assert groups_without_contrast(rewards, valid).tolist() == [False, True, True]
    assert (group_advantages(rewards, valid)[1:] == 0).all()


def test_best_of_group_takes_the_first_of_equal_ones():
    rewards = torch.tensor([[0.5, 0.9, 0.5, 0.1], [9.0, 0.2, 0.3, 0.1]])
    valid = torch.tensor([[True] * 4, [False, True, True, True]])
    assert best_of_group(rewards, valid, 2).tolist() == [[True, True, False, False], [False, True, True, False]]
    assert best_of_group(rewards, valid, 9).equal(valid)


groups = st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8)


@given(groups, st.floats(-100, 100), st.floats(0.1, 10))
def test_adding_to_or_scaling_all_rewards_changes_no_order(values, shift, scale):
    rewards = torch.tensor([values], dtype=torch.float64)
    advantages = group_advantages(rewards, every(rewards))
    moved = group_advantages(rewards * scale + shift, every(rewards))
    assert advantages.isfinite().all()
    assert abs(advantages.sum().item()) < 1e-6
    if rewards.std() > 1:
        torch.testing.assert_close(moved, advantages, atol=1e-2, rtol=1e-2)
