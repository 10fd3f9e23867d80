"""What happens when a reward fails: stop naming reward and row, or go on without the row."""

import asyncio
import math
import re
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from rewards.scoring.failure_policy import (
    Failure,
    GuardedAsyncReward,
    GuardedReward,
    RewardError,
    settle,
)
from rewards.scoring.guards import guard
from rewards.scoring.own_copies import own_copy


def returning(values):
    """A reward that returns these values, whatever it is asked."""
    return lambda completions, **columns: values


def length(completions, **columns) -> list[float]:
    """The length of each completion; refuses the empty one."""
    if "" in completions:
        raise RuntimeError("nothing to judge")
    return [float(len(completion)) for completion in completions]


async def length_async(completions, **columns) -> list[float]:
    await asyncio.sleep(0)
    return length(completions, **columns)


FORMS = {"sync": length, "async": length_async}


def call(reward: GuardedReward, completions, **columns) -> list[float | None]:
    """The scores, of an async reward too."""
    result = reward(completions, **columns)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


# -- scores that are fine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FORMS.values(), ids=FORMS)
def test_scores_pass_through(function):
    reward = guard(function, "length")
    assert call(reward, ["a", "bcd"]) == [1.0, 3.0]
    assert reward.failures == []


@pytest.mark.parametrize("function", FORMS.values(), ids=FORMS)
def test_an_empty_batch_has_no_scores(function):
    assert call(guard(function, "length"), []) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, 0.5], [None, 0.5]),
        ((1, 0), [1.0, 0.0]),
        ([True, False], [1.0, 0.0]),
        ([np.float32(0.5), np.int64(2)], [0.5, 2.0]),
        (np.array([0.25, 1.0]), [0.25, 1.0]),
        (torch.tensor([0.25, 1.0]), [0.25, 1.0]),
        ([torch.tensor(0.5), np.bool_(True)], [0.5, 1.0]),
        ((score for score in (0.5, None)), [0.5, None]),
    ],
    ids=str,
)
def test_what_counts_as_numbers_becomes_floats(values, expected):
    reward = guard(returning(values), "own")
    scores = reward(["a", "b"])
    assert scores == expected
    assert {type(score) for score in scores} <= {float, type(None)}
    assert reward.failures == []


def test_columns_reach_the_reward_whole():
    seen = {}

    def own(completions, **columns):
        seen.update(columns)
        return [0.0] * len(completions)

    columns = {"answers": [["x"], ["y"]], "trainer_state": object(), "log_metric": print}
    guard(own, "own")(["a", "b"], **columns)
    assert seen == columns


# -- values that are not numbers --------------------------------------------------------------------------------------

NOT_NUMBERS = {
    "nan": (math.nan, "expected a finite number, found nan"),
    "infinity": (math.inf, "expected a finite number, found inf"),
    "minus infinity": (np.float64("-inf"), "expected a finite number, found -inf"),
    "text": ("good", "expected a number or None, found 'good'"),
    "number as text": ("0.5", "expected a number or None, found '0.5'"),
    "bytes": (b"1", "expected a number or None, found b'1'"),
    "list": ([0.5], r"expected a number or None, found \[0.5\]"),
    "dict": ({"score": 1}, "expected a number or None, found {'score': 1}"),
    "complex": (1j, "expected a number or None, found 1j"),
    "too large": (10**400, "expected a (finite )?number"),
    "tensor of two": (torch.ones(2), r"expected a number or None, found tensor\(\[1., 1.\]\)"),
}


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize(("value", "message"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_a_value_that_is_no_number_is_fatal_and_named(value, message, policy):
    reward = guard(returning([1.0, value]), "own", on_error=policy)
    assert reward(["a", "b"], id=["first", "second"]) == [1.0, None]
    [failure] = reward.failures
    assert failure.fatal
    assert (failure.reward, failure.row) == ("own", "'second'")
    assert re.search(message, failure.cause), failure.cause


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ([1.0], "returned 1 rewards, expected 2: one a completion"),
        ([1.0, 1.0, 1.0], "returned 3 rewards, expected 2: one a completion"),
        ([], "returned 0 rewards, expected 2: one a completion"),
        (0.5, "expected a list of 2 numbers, found float"),
        (None, "expected a list of 2 numbers, found NoneType"),
        (np.float64(0.5), "expected a list of 2 numbers, found float64"),
        ("11", "expected a list of 2 numbers, found str"),
        ({0: 1.0, 1: 1.0}, "expected a list of 2 numbers, found dict"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make_async", [False, True], ids=FORMS)
def test_anything_but_one_value_a_completion_is_fatal(values, cause, make_async):
    async def own_async(completions, **columns):
        return values

    reward = guard(own_async if make_async else returning(values), "own", on_error="skip")
    assert call(reward, ["a", "b"]) == [None, None]
    [failure] = reward.failures
    assert failure.fatal
    assert failure.cause == cause


# -- rewards that raise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FORMS.values(), ids=FORMS)
def test_raise_names_the_first_failing_row_and_gives_no_scores(function):
    reward = guard(function, "length")
    assert call(reward, ["a", "", "bc", ""], id=["w", "x", "y", "z"]) == [None] * 4
    failure = reward.failures[0]
    assert (failure.reward, failure.row, failure.fatal) == ("length", "'x'", False)
    assert failure.cause == "RuntimeError: nothing to judge"
    assert 'raise RuntimeError("nothing to judge")' in failure.details


def test_raise_scores_no_row_after_the_first_failing_one():
    calls = []

    def own(completions, **columns):
        calls.append(completions)
        return length(completions)

    guard(own, "own")(["a", "", "bc", ""])
    assert calls == [["a", "", "bc", ""], ["a"], [""]]


@pytest.mark.parametrize("function", FORMS.values(), ids=FORMS)
def test_skip_leaves_out_the_failing_rows_only(function):
    reward = guard(function, "length", on_error="skip")
    assert call(reward, ["a", "", "bcd", ""], id=["w", "x", "y", "z"]) == [1.0, None, 3.0, None]
    assert [failure.row for failure in reward.failures] == ["'x'", "'z'"]


@pytest.mark.parametrize("function", FORMS.values(), ids=FORMS)
def test_rows_without_ids_are_named_by_position(function):
    reward = guard(function, "length", on_error="skip")
    call(reward, ["a", ""], id=["w", None])
    call(reward, ["a", ""])
    assert [failure.row for failure in reward.failures] == ["1 of the batch"]


@pytest.mark.parametrize("function", FORMS.values(), ids=FORMS)
def test_failures_are_those_of_the_last_call(function):
    reward = guard(function, "length", on_error="skip")
    call(reward, [""])
    assert len(reward.failures) == 1
    call(reward, ["a"])
    assert reward.failures == []


def test_after_a_failure_each_row_is_scored_again_with_its_own_columns():
    calls = []

    def own(completions, answers, limits, **columns):
        calls.append((completions, answers, limits))
        return length(completions)

    reward = guard(own, "own", on_error="skip")
    assert reward(["a", "", "bc"], answers=["x", "y", "z"], limits=[1, 2]) == [1.0, None, 2.0]
    rows = [(["a"], ["x"], [1, 2]), ([""], ["y"], [1, 2]), (["bc"], ["z"], [1, 2])]  # limits: no column of this batch
    assert calls == [(["a", "", "bc"], ["x", "y", "z"], [1, 2]), *rows]


@pytest.mark.parametrize("make_async", [False, True], ids=FORMS)
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_reward_that_fails_on_the_batch_only_fails_as_a_whole(make_async, policy):
    def together(completions, **columns):
        if len(completions) > 1:
            raise ValueError("cannot compare")
        return [1.0]

    async def together_async(completions, **columns):
        return together(completions)

    reward = guard(together_async if make_async else together, "together", on_error=policy)
    assert call(reward, ["a", "b", "c"]) == [None, None, None]
    assert {failure.row for failure in reward.failures} == {"none in particular (the batch as a whole)"}
    assert reward.failures[0].cause == "ValueError: cannot compare"


@pytest.mark.parametrize("make_async", [False, True], ids=FORMS)
def test_every_row_counts_when_the_batch_fails_as_a_whole(make_async):
    """Or else a reward that never scores anything would stay below its `max_error_rate`."""

    def together(completions, **columns):
        if len(completions) > 1:
            raise ValueError("cannot compare")
        return [1.0]

    async def together_async(completions, **columns):
        return together(completions)

    reward = guard(together_async if make_async else together, "together", on_error="skip")
    call(reward, ["a", "b", "c"])
    assert len(reward.failures) == 3


def test_a_generator_that_raises_is_a_failure():
    def own(completions, **columns):
        for completion in completions:
            yield 1 / len(completion)

    reward = guard(own, "own", on_error="skip")
    assert reward(["a", "", "bc"]) == [1.0, None, 0.5]
    assert [failure.cause for failure in reward.failures] == ["ZeroDivisionError: division by zero"]


def test_a_reward_with_the_wrong_signature_is_a_failure():
    def own(completions):
        return [1.0]

    reward = guard(own, "own")
    assert reward(["a"], answers=["x"]) == [None]
    assert "unexpected keyword argument 'answers'" in reward.failures[0].cause


def test_interrupting_is_not_a_failure():
    def own(completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guard(own, "own", on_error="skip")(["a"])


# -- messages, policies -----------------------------------------------------------------------------------------------


def test_messages_name_reward_rank_row_and_cause():
    failure = Failure("length", "'r7'", "RuntimeError: nothing", details="line 3")
    assert failure.describe() == "reward 'length' failed at row 'r7': RuntimeError: nothing\nline 3"
    assert replace(failure, rank=2).describe().startswith("reward 'length' failed on rank 2 at row 'r7': ")


def test_failures_end_the_run_as_the_policy_of_their_reward_says():
    skipping = guard(length, "length", on_error="skip", max_error_rate=0.25)
    strict = guard(length, "strict")
    failure = Failure("length", "'r7'", "RuntimeError: nothing")
    failed = Counter()
    settle([skipping, strict], [failure], failed, 4)
    settle([skipping, strict], [], failed, 3)  # nothing new: the rate is judged where something fails
    with pytest.raises(RewardError, match=r"'length' failed for 33.3% of 6 rows so far, .* of 25.0%; .* row 'r7'"):
        settle([skipping, strict], [failure], failed, 6)
    assert failed == {"length": 2}
    with pytest.raises(RewardError, match="^reward 'length' failed at row 'r7'"):
        settle([skipping], [replace(failure, fatal=True)], Counter(), 100)
    with pytest.raises(RewardError, match="^reward 'strict' failed on rank 1 at row 'r7'"):
        settle([skipping, strict], [replace(failure, reward="strict", rank=1)], Counter(), 100)


def test_async_functions_and_callables_become_async_rewards():
    class Judge:
        async def __call__(self, completions, **columns):
            return [0.5] * len(completions)

    assert isinstance(guard(length_async, "a"), GuardedAsyncReward)
    assert call(guard(Judge(), "judge"), ["a", "b"]) == [0.5, 0.5]
    assert type(guard(length, "a")) is GuardedReward


def test_the_name_is_what_trl_logs():
    assert guard(length, "my name").__name__ == "my name"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"on_error": "ignore"}, "reward 'own': on_error: expected one of raise, skip, found 'ignore'"),
        ({"max_error_rate": 1.5}, "reward 'own': max_error_rate: expected 0 to 1, found 1.5"),
        ({"max_error_rate": -0.1}, "max_error_rate: expected 0 to 1, found -0.1"),
        ({"max_error_rate": "0.1"}, "max_error_rate: expected 0 to 1, found '0.1'"),
        ({"max_error_rate": math.nan}, "max_error_rate: expected 0 to 1, found nan"),
    ],
)
def test_wrong_policies_are_errors(policy, message):
    with pytest.raises(ValueError, match=message):
        guard(length, "own", **policy)


def test_policies_have_defaults():
    reward = guard(length, "own")
    assert (reward.on_error, reward.max_error_rate) == ("raise", 0.1)


class OwnList(list):
    pass


@pytest.mark.parametrize("value", [deque([[1]], maxlen=3), bytearray(b"ab"), OwnList([[1]]), {1, 2}, ([1],)], ids=str)
def test_t14_containers_of_any_class_are_copied(value):
    own = own_copy(value, {})
    assert type(own) is type(value)
    assert own == value
    assert own is not value
    if isinstance(value, deque | list | tuple):
        own[0].append(2)
        assert value[0] == [1]
