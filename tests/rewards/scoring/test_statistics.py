"""Summaries and bootstrap intervals against numpy and scipy."""

import numpy as np
import pytest
from scipy import stats

from rewards.scoring.statistics import Interval, bootstrap_mean, paired_difference, summarise, wilson_interval


@pytest.fixture(scope="module")
def values() -> list[float]:
    return np.random.default_rng(5).beta(2, 5, size=200).tolist()


def test_summary_by_hand():
    summary = summarise([0.0, None, 1.0, 0.5, None, 0.5], errors=1)
    assert summary["mean"] == 0.5
    assert summary["std"] == pytest.approx((0.5 / 3) ** 0.5)  # squares 0.25 + 0.25 over 4 - 1
    assert (summary["min"], summary["max"]) == (0.0, 1.0)
    assert summary["quantiles"] == pytest.approx(
        {"0.05": 0.075, "0.25": 0.375, "0.5": 0.5, "0.75": 0.625, "0.95": 0.925}
    )
    assert (summary["count"], summary["none"], summary["errors"]) == (4, 2, 1)


def test_summary_agrees_with_numpy(values):
    summary = summarise(values)
    assert summary["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert summary["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    for share, quantile in summary["quantiles"].items():
        assert quantile == pytest.approx(np.quantile(values, float(share)), rel=1e-12)


def test_summary_of_one_value():
    summary = summarise([0.25])
    assert (summary["mean"], summary["std"], summary["count"]) == (0.25, 0.0, 1)


@pytest.mark.parametrize("scores", [[], [None, None]])
def test_summary_of_nothing(scores):
    summary = summarise(scores, errors=2)
    assert (summary["mean"], summary["std"], summary["min"], summary["max"]) == (None,) * 4
    assert (summary["count"], summary["none"], summary["errors"]) == (0, len(scores), 2)
    assert summary["quantiles"] == {}


def test_interval_is_the_percentile_bootstrap():
    values = [0.0, 0.25, 0.5, 1.0, -1.0] * 4
    picks = np.random.default_rng(0).integers(20, size=(10_000, 20))
    means = np.array(values)[picks].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert bootstrap_mean(values) == Interval(np.mean(values), low, high)


def test_interval_of_one_value_and_of_none():
    assert bootstrap_mean([0.25]) == Interval(0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="at least|two or more"):
        bootstrap_mean([])


@pytest.mark.parametrize(("successes", "trials"), [(0, 3), (3, 3), (8, 10), (401, 1000)])
def test_wilson_intervals_are_those_of_scipy(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_many_values_which_are_resampled_in_blocks():
    values = np.random.default_rng(1).normal(3, 2, size=4_000)
    interval = bootstrap_mean(values, samples=3_000)
    margin = 1.96 * values.std(ddof=1) / 4_000**0.5
    assert interval.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert interval.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_interval_of_equal_values_has_no_width():
    assert bootstrap_mean([0.5] * 20) == Interval(0.5, 0.5, 0.5)


def test_interval_depends_on_the_seed_only(values):
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(1, 1, size=50), samples=500) for _ in range(300)]
    covered = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_paired_difference_is_the_interval_of_the_differences():
    before, after = [0.0, 0.5, 1.0, 0.25], [0.5, 0.5, 0.75, 1.0]
    assert paired_difference(before, after) == bootstrap_mean([0.5, 0.0, -0.25, 0.75])
    assert paired_difference(before, after).estimate == 0.25


def test_pairing_removes_what_rows_have_in_common(values):
    after = [value + 0.01 for value in values]
    interval = paired_difference(values, after)
    assert interval.low == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01)


@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 2.0]), ([], [])])
def test_lists_that_cannot_be_paired_are_an_error(before, after):
    with pytest.raises(ValueError, match=f"equally many scores, found {len(before)} and {len(after)}"):
        paired_difference(before, after)


def test_intervals_print_with_their_signs():
    assert str(Interval(0.0616, -0.0004, 0.12)) == "+0.062 [-0.000, +0.120]"
