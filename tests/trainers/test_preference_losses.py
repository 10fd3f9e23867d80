"""Losses of preferences, by arithmetic written out."""

import math

import pytest
import torch

from models.reward.model import bound_scores
from trainers.losses import centring_penalty, preference_loss, preferred, saturated

SCORES = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
RANKS = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
VALID = torch.ones(2, 2, dtype=torch.bool)
GAPS = (1.5, -1.7)  # better - worse


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_bradley_terry_by_hand():
    expected = [-math.log(sigmoid(gap)) for gap in GAPS]
    torch.testing.assert_close(preference_loss(SCORES, RANKS, VALID), torch.tensor(expected))


def test_the_margin_is_taken_from_the_gap():
    expected = [-math.log(sigmoid(gap - 0.5)) for gap in GAPS]
    found = preference_loss(SCORES, RANKS, VALID, margin=0.5)
    torch.testing.assert_close(found, torch.tensor(expected))
    each = preference_loss(SCORES, RANKS, VALID, margin=torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(each, torch.tensor([-math.log(sigmoid(1.5)), -math.log(sigmoid(-3.7))]))


def test_the_order_of_the_responses_does_not_matter():
    swapped = preference_loss(SCORES.flip(1), RANKS.flip(1), VALID, margin=0.5)
    torch.testing.assert_close(swapped, preference_loss(SCORES, RANKS, VALID, margin=0.5))


def test_hinge_by_hand():
    # max(0, 2 - 1.5) and max(0, 2 + 1.7); with a margin of 1 the first is won
    torch.testing.assert_close(preference_loss(SCORES, RANKS, VALID, "hinge", 2.0), torch.tensor([0.5, 3.7]))
    torch.testing.assert_close(preference_loss(SCORES, RANKS, VALID, "hinge", 1.0), torch.tensor([0.0, 2.7]))


def test_plackett_luce_of_two_is_bradley_terry():
    found = preference_loss(SCORES, RANKS, VALID, "plackett_luce")
    torch.testing.assert_close(found, preference_loss(SCORES, RANKS, VALID))


def test_plackett_luce_of_three_by_hand():
    scores, ranks = torch.tensor([[0.2, 1.0, -0.4]]), torch.tensor([[1.0, 0.0, 2.0]])
    best, second, last = math.exp(1.0), math.exp(0.2), math.exp(-0.4)
    expected = -math.log(best / (best + second + last)) - math.log(second / (second + last))
    found = preference_loss(scores, ranks, torch.ones(1, 3, dtype=torch.bool), "plackett_luce")
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_plackett_luce_does_not_compare_equal_ranks():
    scores, ranks = torch.tensor([[0.2, 1.0, -0.4]]), torch.tensor([[1.0, 1.0, 2.0]])
    first = -math.log(math.exp(0.2) / (math.exp(0.2) + math.exp(-0.4)))
    second = -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(-0.4)))
    found = preference_loss(scores, ranks, torch.ones(1, 3, dtype=torch.bool), "plackett_luce")
    assert found.item() == pytest.approx(first + second, abs=1e-6)


def test_a_group_counts_the_mean_of_its_pairs():
    scores, ranks = torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    pairs = [-math.log(sigmoid(1.0)), -math.log(sigmoid(3.0))]
    found = preference_loss(scores, ranks, torch.ones(1, 3, dtype=torch.bool))
    assert found.item() == pytest.approx(sum(pairs) / 2, abs=1e-6)


@pytest.mark.parametrize("loss_type", ["bradley_terry", "hinge", "plackett_luce"])
def test_ragged_groups_are_as_if_alone(loss_type):
    scores = torch.tensor([[1.0, 0.0, -2.0], [0.5, 0.7, 1e6]], requires_grad=True)
    ranks = torch.tensor([[2.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    found = preference_loss(scores, ranks, valid, loss_type, 0.5)
    alone = preference_loss(scores[1:, :2], ranks[1:, :2], valid[1:, :2], loss_type, 0.5)
    torch.testing.assert_close(found[1:], alone)
    found.sum().backward()
    assert scores.grad[1, 2] == 0
    assert scores.grad.isfinite().all()


def test_a_group_of_ties_has_no_loss():
    for loss_type in ("bradley_terry", "hinge", "plackett_luce"):
        found = preference_loss(SCORES, torch.zeros(2, 2), VALID, loss_type, 1.0)
        assert found.tolist() == [0.0, 0.0]


def test_centring_by_hand():
    # (1 - 0.5)^2 and (0.3 + 2)^2
    torch.testing.assert_close(centring_penalty(SCORES, RANKS, VALID), torch.tensor([0.25, 5.29]))
    three = centring_penalty(
        torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 2.0]]), VALID[:1, :1].expand(1, 3)
    )
    assert three.item() == pytest.approx((9 + 25 + 36) / 3)


def test_losses_are_those_of_trl():
    """`trl.RewardTrainer.compute_loss`: -logsigmoid(chosen - rejected - margin) + c (chosen + rejected)^2."""
    chosen, rejected = SCORES.unbind(1)
    margin = torch.tensor([0.1, 0.4])
    expected = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
    torch.testing.assert_close(preference_loss(SCORES, RANKS, VALID, margin=margin), expected)
    torch.testing.assert_close(centring_penalty(SCORES, RANKS, VALID), (chosen + rejected) ** 2)


def test_the_largest_gap_between_bounded_scores():
    """10 for bounds of -5 and 5: the loss has a floor, and a margin of 10 could never be reached."""
    far = bound_scores(torch.tensor([[1e9, -1e9]]), -5.0, 5.0)
    loss = preference_loss(far, RANKS[:1], VALID[:1])
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-3)
    hinge = preference_loss(far, RANKS[:1], VALID[:1], "hinge", 10.5)
    assert hinge.item() == pytest.approx(0.5, abs=1e-5)


def test_a_saturated_wrong_pair_is_still_pulled_apart():
    raw = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    preference_loss(bound_scores(raw, -5.0, 5.0), RANKS[:1], VALID[:1]).sum().backward()
    assert raw.grad[0, 0] < -1e-5
    assert raw.grad[0, 1] > 1e-5


def test_preferred_and_saturated():
    ranks = torch.tensor([[1.0, 0.0, 1.0]])
    expected = [[[False, False, False], [True, False, True], [False, False, False]]]
    assert preferred(ranks, torch.ones(1, 3, dtype=torch.bool)).tolist() == expected
    scores = torch.tensor([-5.0, -4.8, -4.79, 0.0, 4.79, 4.81, 5.0])
    assert saturated(scores, -5.0, 5.0).tolist() == [True, True, False, False, False, True, True]
    assert not saturated(scores, None, None).any()


def test_unknown_loss():
    with pytest.raises(ValueError, match="loss_type: expected one of bradley_terry, hinge, plackett_luce, found 'x'"):
        preference_loss(SCORES, RANKS, VALID, "x")
