"""A verdict against the ranking of people."""

import pytest

from rewards.judging.accuracy import VerdictAccuracy
from rewards.scoring.columns import ColumnError


def test_the_verdict_of_people_scores_1_and_what_is_unreadable_0():
    completions = ["<verdict>A</verdict>", "<verdict>B</verdict>", "A", "<verdict>A</verdict><verdict>B</verdict>"]
    assert VerdictAccuracy()(completions * 2, better=["A"] * 4 + ["B"] * 4) == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_rows_of_another_task_have_no_score():
    assert VerdictAccuracy()(["<verdict>A</verdict>"], better=[None]) == [None]


@pytest.mark.parametrize("better", ["a", "", 0, ["A"], "AB"])
def test_what_names_no_response_is_an_error(better):
    with pytest.raises(ColumnError, match="column 'better', row 0 of the batch: expected 'A' or 'B', found"):
        VerdictAccuracy()(["<verdict>A</verdict>"], better=[better])
