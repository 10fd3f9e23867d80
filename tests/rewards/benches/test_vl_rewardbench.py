"""VL-RewardBench: the published evaluator's figures, and those that it leaves out, by hand."""

import math

import evaluate
import pytest

from rewards.benches.vl_rewardbench import GROUPS, group_of, preference_accuracy
from rewards.preferences.metric import PreferenceAccuracyMetric
from rewards.preferences.scored import ScoredPair, ScoredPreference, ranked_pairs
from rewards.scoring.statistics import wilson_interval

CASES = [f"public{number}" for number in range(6)]


@pytest.fixture(scope="module")
def cases(oracle) -> dict:
    return {case["id"]: case for case in oracle("reward_bench")["cases"]}


def _percent(share: float) -> float:
    return round(100 * share, 2)


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_the_published_evaluator(cases, case):
    items, expected = cases[case]["items"], cases[case]["expected"]
    found = preference_accuracy([pair for item in items for pair in ScoredPreference(**item).pairs()])
    for group in GROUPS:
        figures, counts = found["groups"][group], expected["counts"][group]
        assert _percent(figures["accuracy"]) == expected[group]
        assert (figures["correct"], figures["count"], figures["ties"]) == tuple(counts.values())
    assert _percent(found["overall"]) == expected["overall"]
    assert _percent(found["macro"]) == expected["macro"]
    assert found["items"] == expected["items"]
    assert found["duplicates"] == len(items) - expected["items"]


def test_every_case_was_tried(cases):
    assert set(cases) == set(CASES)


@pytest.mark.parametrize("case", CASES[:2])
def test_the_metric_gives_the_same_figures(cases, case):
    items, expected = cases[case]["items"], cases[case]["expected"]
    found = PreferenceAccuracyMetric().compute(
        predictions=[item["scores"] for item in items],
        references=[item["human_ranking"] for item in items],
        ids=[item["id"] for item in items],
        queries=[item["query"] for item in items],
        responses=[item["response"] for item in items],
    )
    for name in (*GROUPS, "overall", "macro", "items"):
        assert found[name] == expected[name]
    assert evaluate.Metric in type(PreferenceAccuracyMetric()).__mro__


def test_the_metric_needs_no_more_than_scores_and_ranks():
    found = PreferenceAccuracyMetric().compute(
        predictions=[[1.0, 0.0], [1.0, 0.0], [2.0, 2.0], [0.0, 5.0, 1.0]],
        references=[[0, 1], [1, 0], [0, 1], [2, 0, 1]],
    )
    # Right, wrong, tie, and three right pairs: 4 of 5 decided, 4 of 6 in all.
    assert found == {"overall": 80.0, "strict_overall": 66.67, "coverage": 83.33, "items": 6}


def test_the_metric_refuses_scores_of_another_length():
    with pytest.raises(ValueError, match="query 1: expected 2 scores, one a rank, found 3"):
        PreferenceAccuracyMetric().compute(predictions=[[1.0, 0.0], [1.0, 0.0, 2.0]], references=[[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("item_id", "group"),
    [
        ("RLAIF-V_1", "hallucination"),
        ("RLHF_1", "hallucination"),
        ("hallucination_pair-3", "hallucination"),
        ("mathverse_1", "reasoning"),
        ("mmmu-1", "reasoning"),
        ("mmmu", "reasoning"),
        ("wildvision-battle_1", "general"),
        ("wild_vision-1", "general"),
        ("MMMU_1", "general"),
        ("rlhf_1", "general"),
        ("povid_1", "general"),
        ("VLFeedback_1", "general"),
        ("RLHFV", "general"),
        ("-mmmu", "general"),
        ("", "general"),
        (17, "general"),
    ],
)
def test_the_group_is_told_from_the_id_up_to_the_first_sign(item_id, group):
    assert group_of(item_id) == group


def pair(item_id="mmmu_1", query="q", preferred="a", rejected="b", gap=1.0) -> ScoredPair:
    return ScoredPair(item_id, query, preferred, rejected, gap, 0.0)


def test_a_group_without_decided_pairs_by_hand():
    """General has no pair, reasoning two ties, hallucination 2 right, 1 wrong, 1 tie and one repetition."""
    found = preference_accuracy(
        [
            pair("RLHF_1", gap=2.0),
            pair("RLHF_2", gap=0.5),
            pair("RLHF_3", gap=-1.0),
            pair("RLHF_4", gap=0.0),
            pair("RLHF_1", gap=-9.0),  # the first counts
            pair("mmmu_1", gap=0.0),
            pair("mmmu_2", gap=0.0),
        ]
    )
    general, hallucination, reasoning = (found["groups"][group] for group in GROUPS)
    assert general == {
        **dict.fromkeys(("accuracy", "strict_accuracy", "wilson", "strict_wilson")),
        **dict.fromkeys(("count", "ties", "correct", "n"), 0),
    }
    assert (hallucination["accuracy"], hallucination["strict_accuracy"]) == (2 / 3, 2 / 4)
    assert [hallucination[key] for key in ("count", "ties", "correct", "n")] == [3, 1, 2, 4]
    assert (reasoning["accuracy"], reasoning["strict_accuracy"]) == (None, 0.0)
    assert [reasoning[key] for key in ("count", "ties", "correct", "n")] == [0, 2, 0, 2]
    assert found["overall"] == 2 / 3
    assert found["macro"] == 2 / 3
    assert found["macro_groups"] == ["hallucination"]
    assert found["strict_overall"] == 2 / 6
    assert found["strict_macro"] == (2 / 4 + 0) / 2
    assert found["coverage"] == 3 / 6
    assert (found["items"], found["duplicates"], found["ties"]) == (6, 1, 3)


def test_nothing_decided_at_all():
    found = preference_accuracy([pair(gap=0.0)])
    assert (found["overall"], found["macro"], found["coverage"], found["strict_macro"]) == (None, None, 0.0, 0.0)


@pytest.mark.parametrize(
    ("other", "items"),
    [
        ({}, 1),
        ({"preferred": "b", "rejected": "a"}, 1),  # order of responses does not matter
        ({"query": "Q"}, 2),
        ({"item_id": "mmmu_2"}, 2),
        ({"rejected": "c"}, 2),
        ({"item_id": "mmmu_", "query": "1q"}, 1),  # the published key joins its parts without a sign between
        ({"query": "qa", "preferred": "", "rejected": "b"}, 1),
    ],
)
def test_what_counts_as_the_same_item(other, items):
    assert preference_accuracy([pair(), pair(**other)])["items"] == items


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="at least one pair"):
        preference_accuracy([])


def test_a_score_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="item 'mmmu_1': expected finite scores, found nan"):
        preference_accuracy([pair(gap=math.nan)])


def test_pairs_of_more_than_two_responses():
    assert ranked_pairs([2, 0, 1]) == [(1, 0), (2, 0), (1, 2)]
    assert ranked_pairs([0, 0, 1]) == [(0, 2), (1, 2)]
    assert ranked_pairs([3, 3]) == []


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [  # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96
        (8, 10, (0.4902, 0.9433)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (50, 100, (0.4038, 0.5962)),
    ],
)
def test_wilson_intervals(successes, trials, expected):
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


def test_no_trials_have_no_interval():
    assert wilson_interval(0, 0) is None
