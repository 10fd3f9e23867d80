"""Figures of predicted factors, by arithmetic written out."""

import math

import numpy as np
import pytest

from models.factors.metrics import choice_metrics, factor_metrics, fit_threshold, fit_thresholds, majority_choice

LABELS = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])


def test_figures_of_a_choice():
    """3 right, 1 wrong, 1 missing. First factor: 1 of 2 found; second: both found, one too many."""
    found = choice_metrics(np.array([[1, 0], [0, 1], [0, 1], [0, 1]]), LABELS)
    assert found["precision_micro"] == pytest.approx(3 / 4)
    assert found["recall_micro"] == pytest.approx(3 / 4)
    assert found["f1_micro"] == pytest.approx(3 / 4)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["subset_accuracy"] == pytest.approx(2 / 4)


def test_nothing_chosen_counts_zero():
    assert choice_metrics(np.zeros((4, 2)), LABELS)["f1_micro"] == 0


def test_figures_of_probabilities():
    probabilities = np.array([[0.9, 0.2], [0.4, 0.8], [0.6, 0.1], [0.1, 0.6]])
    found = factor_metrics(probabilities, LABELS, np.array([0.5, 0.5]))
    terms = [0.9, 0.8, 0.4, 0.8, 0.4, 0.9, 0.9, 0.6]
    assert found["bce"] == pytest.approx(-sum(map(math.log, terms)) / 8)
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert found["f1_micro"] == pytest.approx(3 / 4)


def test_factors_that_never_apply_are_left_out_of_the_average_precision():
    labels = np.array([[1, 0], [0, 0]])
    assert factor_metrics(np.array([[0.9, 0.3], [0.1, 0.2]]), labels, np.array([0.5, 0.5]))["map"] == 1
    assert factor_metrics(np.array([[0.9], [0.1]]), np.zeros((2, 1)), np.array([0.5]))["map"] == 0


@pytest.mark.parametrize(
    ("probabilities", "labels", "threshold"),
    [
        ([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1], 0.25),
        ([0.1, 0.6, 0.7, 0.9], [0, 1, 0, 1], 0.35),
        ([0.4, 0.9], [1, 1], 0.2),
        ([0.4, 0.9], [0, 0], 0.5),
    ],
)
def test_thresholds_have_the_best_f1(probabilities, labels, threshold):
    assert fit_threshold(np.array(probabilities), np.array(labels)) == pytest.approx(threshold)


def test_no_threshold_is_better():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3))
    probabilities = (0.3 * labels + rng.random((60, 3))) / 1.3
    fitted = fit_thresholds(probabilities, labels)
    for column, threshold in enumerate(fitted):

        def f1(value, column=column):
            return choice_metrics(probabilities[:, [column]] >= value, labels[:, [column]])["f1_micro"]

        assert f1(threshold) == max(f1(value) for value in np.linspace(0, 1, 100))


def test_the_majority_is_the_best_constant():
    """Always {first}: F1 = 2*6/(8+9) = 0.71; always both: 2*9/(16+9) = 0.72."""
    labels = np.array([[1, 0]] * 4 + [[1, 1]] * 2 + [[0, 1], [0, 0]])
    assert labels.sum() == 9
    assert majority_choice(labels).tolist() == [1, 1]
    assert majority_choice(labels[:5]).tolist() == [1, 0]
