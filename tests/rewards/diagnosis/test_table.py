"""The table and the picture of a diagnosis: what stands in them, and what is left out."""

import copy

import numpy as np
import pytest

from rewards.diagnosis.picture import draw_diagnosis
from rewards.diagnosis.table import format_table, table_rows

SHARE = {"share": 0.75, "wilson": [0.5, 0.9], "rows": 1200}
NONE = {"share": None, "wilson": None, "rows": 0}
CHANGE = {"estimate": -0.255, "low": -0.3, "high": 0.21}
FIGURES = {
    "rows": 1300,
    "all_rows": 5000,
    "without_images": 100,
    "images": {
        "with": SHARE,
        "blank": {**SHARE, "share": 0.495, "difference": CHANGE},
        "without": {**SHARE, "share": 0.5, "difference": CHANGE},
    },
    "order": {"flips": {**SHARE, "share": 0.125}, "first": {**SHARE, "share": 0.5}},
    "length": {
        "accuracy": {"shorter": {**SHARE, "share": 0.6}, "longer": SHARE, "equal": NONE},
        "correlation": {"estimate": 0.3, "low": 0.2, "high": 0.4},
        "people": {"estimate": 0.1, "low": 0.0, "high": 0.2},
        "difference": {"estimate": 0.2, "low": 0.15, "high": 0.25},
        "prompts": 900,
    },
    "calibration": {
        "bins": [{"gap": [0, 1], "predicted": 0.6, "accuracy": 0.7, "wilson": [0.5, 0.8], "count": 1300}],
        "expected_calibration_error": 0.1,
    },
}


def test_rows_of_the_table():
    assert table_rows(FIGURES) == [
        ("with the image", "75.0% [50.0, 90.0]", "", "1,200"),
        ("with a blank image of equal size", "49.5% [50.0, 90.0]", "-25.5 [-30.0, +21.0]", "1,200"),
        ("without images", "50.0% [50.0, 90.0]", "-25.5 [-30.0, +21.0]", "1,200"),
        ("where the better response is the shorter one", "60.0% [50.0, 90.0]", "", "1,200"),
        ("where it is the longer one", "75.0% [50.0, 90.0]", "", "1,200"),
        ("rank correlation of length and score", "+0.300 [+0.200, +0.400]", "+0.200 [+0.150, +0.250]", "900"),
        ("rank correlation of length and people's order", "+0.100 [+0.000, +0.200]", "", "900"),
        ("verdicts that flip with the order of responses", "12.5% [50.0, 90.0]", "", "1,200"),
        ("verdicts for the response that stands first", "50.0% [50.0, 90.0]", "", "1,200"),
        ("calibration error", "0.100", "", "1,300"),
    ]


def test_the_text_says_what_its_rows_are_of():
    text = format_table(FIGURES)
    assert "1,300 of 5,000 rows; " in text
    assert "100 rows have no images" in text
    assert "scored by itself" not in text
    assert "scored by itself" in format_table({**FIGURES, "order": None, "without_images": 0})
    rows = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in rows}) == 1  # columns stand below each other


def test_without_images_lengths_that_differ_and_log_odds_the_rest_remains():
    figures = copy.deepcopy(FIGURES) | {"images": {"with": NONE}, "order": None, "calibration": None}
    figures["length"] |= {"correlation": None, "people": None, "difference": None, "prompts": 0}
    assert [row[0] for row in table_rows(figures)] == [
        "where the better response is the shorter one",
        "where it is the longer one",
    ]
    [axes] = draw_diagnosis(figures, "m").axes
    assert len(axes.get_yticklabels()) == 2


@pytest.mark.parametrize("order", [None, FIGURES["order"]])
def test_the_picture_has_each_share_with_its_interval_on_white(order):
    figure = draw_diagnosis({**FIGURES, "order": order}, "my model")
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["with the image", "with a blank image of equal size"]
    assert len(labels) == 5 + (order is not None)
    points = {
        float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert points[1.0] == pytest.approx(49.5)
    assert "my model" in axes.get_title()
    figure.canvas.draw()
    corner = np.asarray(figure.canvas.buffer_rgba())[0, 0]
    assert corner.tolist() == [255] * 4  # opaque, for dark pages
