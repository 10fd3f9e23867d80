"""Rewards that score whole groups: called once a group, wherever its rows stand, and guarded as all others."""

import pytest

from rewards.registry import build_reward
from rewards.scoring.guards import GuardedAsyncGroupReward, GuardedGroupReward, guard, scores_of

OWN = """
from collections import Counter


def majority(completions, floor=0.0, **columns):
    counts = Counter(completions)
    return [max(floor, counts[text] / len(completions)) for text in completions]


majority.scores_groups = True


async def majority_async(completions, **columns):
    return majority(completions)


majority_async.scores_groups = True
"""


def noted(calls: list, is_async: bool, values=lambda completions: [float(len(completions))] * len(completions)):
    """A reward of groups that notes what it is called with, and gives each completion the size of its group."""

    def score(completions, **columns):
        calls.append((completions, columns))
        return values(completions)

    async def score_async(completions, **columns):
        return score(completions, **columns)

    chosen = score_async if is_async else score
    chosen.scores_groups = True
    return chosen


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
def test_each_call_has_all_completions_of_one_group_and_their_columns(is_async):
    calls: list = []
    reward = guard(noted(calls, is_async), "own")
    state = object()
    columns = {"id": ["p", "q", "p", "p"], "answers": [1, 2, 3, 4], "trainer_state": state, "log_extra": print}
    assert scores_of(reward, ["a", "b", "c", "d"], columns, ["p", "q", "p", "p"]) == [3.0, 1.0, 3.0, 3.0]
    assert calls == [
        (["a", "c", "d"], {"id": ["p", "p", "p"], "answers": [1, 3, 4], "trainer_state": state}),
        (["b"], {"id": ["q"], "answers": [2], "trainer_state": state}),
    ]


def test_a_plain_call_is_one_group():
    assert guard(noted([], False), "own")(["a", "b"]) == [2.0, 2.0]


@both
def test_a_group_that_fails_goes_without_scores_and_the_others_keep_theirs(is_async):
    def values(completions):
        return [1 / len(completions[0])] * len(completions)

    reward = guard(noted([], is_async, values), "own", on_error="skip")
    scores = scores_of(reward, ["ab", "", "ab", "c"], {"id": ["p", "q", "p", "q"]}, [1, 2, 1, 2])
    assert scores == [0.5, None, 0.5, None]
    assert [failure.row for failure in reward.failures] == ["'q' (its group as a whole)"] * 2
    assert "ZeroDivisionError" in reward.failures[0].cause


@both
@pytest.mark.parametrize(
    ("values", "row", "cause"),
    [
        ([1.0, 1.0, 1.0], "'q' (its group as a whole)", "returned 3 rewards, expected 2: one a completion"),
        ([1.0, float("nan")], "'q'", "expected a finite number, found nan"),
        (1.0, "'q' (its group as a whole)", "expected a list of 2 numbers, found float"),
    ],
)
def test_what_is_no_number_a_completion_is_fatal_and_names_the_group(values, row, cause, is_async):
    reward = guard(noted([], is_async, lambda completions: values), "own", on_error="skip")
    scores_of(reward, ["a", "b"], {"id": ["q", "q"]}, [0, 0])
    [failure] = reward.failures
    assert (failure.row, failure.cause, failure.fatal) == (row, cause, True)


@pytest.mark.parametrize(
    ("spec", "form", "expected"),
    [
        ({"name": "own_groups.majority", "floor": 0.5}, GuardedGroupReward, [2 / 3, 2 / 3, 0.5, 1.0]),
        ("own_groups.majority_async", GuardedAsyncGroupReward, [2 / 3, 2 / 3, 1 / 3, 1.0]),
    ],
)
def test_a_reward_of_groups_is_named_by_its_dotted_path(spec, form, expected, own_module):
    own_module("own_groups", OWN)
    reward = build_reward(spec)
    assert type(reward) is form
    assert scores_of(reward, ["x", "x", "y", "y"], {}, [0, 0, 0, 1]) == expected
