"""The calibration curve against hand-made pairs, and pictures that can be opened."""

import math

import numpy as np
import pytest
from PIL import Image

from rewards.preferences.calibration import calibration, draw_calibration, draw_scores, score_summary
from rewards.preferences.scored import ScoredPair


def pairs(*gaps: float) -> list[ScoredPair]:
    return [ScoredPair(number, "q", "a", "b", gap / 2, -gap / 2) for number, gap in enumerate(gaps)]


def sigmoid(gap: float) -> float:
    return 1 / (1 + math.exp(-gap))


def test_one_bin_by_hand():
    [only] = calibration(pairs(2.0, 2.0, -2.0, 0.0))["bins"]
    assert only["count"] == 4
    assert only["gap"] == [0.0, 2.0]
    assert only["predicted"] == pytest.approx((3 * sigmoid(2) + 0.5) / 4)
    assert only["accuracy"] == (1 + 1 + 0 + 0.5) / 4


def test_two_bins_and_the_error_by_hand():
    small, large = [0.1] * 6 + [-0.1] * 4, [3.0] * 9 + [-3.0]
    found = calibration(pairs(*small, *large))
    assert [one["count"] for one in found["bins"]] == [10, 10]
    assert [one["accuracy"] for one in found["bins"]] == [0.6, 0.9]
    assert [one["predicted"] for one in found["bins"]] == pytest.approx([sigmoid(0.1), sigmoid(3)])
    error = (abs(0.6 - sigmoid(0.1)) + abs(0.9 - sigmoid(3))) / 2
    assert found["expected_calibration_error"] == round(error, 4)


def test_equal_gaps_share_a_bin():
    bins = calibration(pairs(*[1.0] * 95, *[2.0] * 5))["bins"]
    assert sum(one["count"] for one in bins) == 100
    assert all(before["gap"][1] < after["gap"][0] for before, after in zip(bins, bins[1:], strict=False))


def test_scores_that_are_log_odds_are_calibrated():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, 20_000)
    signs = np.where(rng.random(len(gaps)) < 1 / (1 + np.exp(-np.abs(gaps))), 1, -1)
    assert calibration(pairs(*(np.abs(gaps) * signs)))["expected_calibration_error"] < 0.01
    assert calibration(pairs(*(4 * np.abs(gaps) * signs)))["expected_calibration_error"] > 0.1


def test_very_large_gaps_do_not_overflow():
    with np.errstate(all="raise"):
        [only] = calibration(pairs(1e300))["bins"]
    assert only["predicted"] == 1.0


def test_the_summary_of_scores():
    found = score_summary(pairs(2.0, -1.0))
    assert found["preferred"] == {"mean": 0.25, "std": 0.75, "min": -0.5, "max": 1.0}
    assert found["gap"]["mean"] == 0.5


@pytest.mark.parametrize("gaps", [[1.5], [0.0, 0.0], list(np.linspace(-3, 5, 200))], ids=["one", "ties", "many"])
@pytest.mark.parametrize("draw", [draw_calibration, draw_scores])
def test_pictures_are_drawn(draw, gaps, tmp_path):
    draw(pairs(*gaps), "model", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
