"""What votes come to: who meets whom, outcomes over both orders, shares of wins, scores."""

from collections import Counter

import pytest

from rewards.judging.verdicts import Scale
from rewards.judging.votes import meetings, outcome, score_of, share_of_a, shares_of_wins


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_by_default_all_meet_all_once(count):
    found = meetings(count, None, "s")
    assert len(found) == len(set(found)) == count * (count - 1) // 2
    assert all(first < second for first, second in found)


@pytest.mark.parametrize(("count", "opponents", "met"), [(8, 2, 2), (8, 3, 4), (7, 4, 4), (4, 1, 2), (2, 1, 1)])
def test_sampled_opponents_are_equally_many_for_all(count, opponents, met):
    found = meetings(count, opponents, "s")
    assert set(Counter(place for pair in found for place in pair).values()) == {met}
    assert len(found) == count * met // 2
    assert found == meetings(count, opponents, "s")
    assert len({tuple(meetings(8, 2, str(seed))) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    ("votes", "share"),
    [("A", 1.0), ("B", 0.0), ("AB", 0.5), ("ABB", 0.0), ("AA-B", 1.0), ("--B", 0.0), ("-", None), ("", None)],
)
def test_the_majority_of_the_readable_votes_counts(votes, share):
    assert share_of_a([None if vote == "-" else vote for vote in votes]) == share


@pytest.mark.parametrize(
    ("as_given", "swapped", "share"),
    [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.5), (0.5, 0.0, 0.75), (1.0, None, None), (None, 1.0, None)],
)
def test_a_pair_counts_in_both_orders_or_not_at_all(as_given, swapped, share):
    assert outcome(as_given, swapped) == share


def test_a_response_without_an_outcome_has_no_share():
    assert shares_of_wins(3, {(0, 1): 0.25, (0, 2): None, (1, 2): None}) == [0.25, 0.75, None]


@pytest.mark.parametrize(
    ("votes", "score"), [([1], 0.0), ([5], 1.0), ([1, 5, 4], 0.75), ([2, None, 3], 0.375), ([None], None), ([], None)]
)
def test_a_score_is_the_median_on_the_scale(votes, score):
    assert score_of(votes, Scale(1, 5)) == score
