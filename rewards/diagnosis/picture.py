"""The figures of a diagnosis as one picture: accuracies with their intervals, beside the calibration curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.io.records import atomic_write
from rewards.diagnosis.table import LENGTHS, TITLE, VARIANTS
from rewards.diagnosis.verdicts import FLIPS

SIZE = (9.6, 3.6)
"""In inches."""
INK, CHANCE = "0.25", "0.6"
IMAGES, OTHERS = "#1b7837", "#5e4c9f"
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}


def draw_diagnosis(figures: Mapping[str, Any], name: str) -> Any:
    """A matplotlib figure.

    Args:
        figures: of `rewards.diagnosis.questions.Diagnosis.figures`.
        name: of the model.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    calibration = figures["calibration"]
    widths = (1.7,) if calibration is None else (1.7, 1)
    left, *right = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_accuracies(left, figures)
    left.set_title(f"{name}: {TITLE[0].lower()}{TITLE[1:]}", fontsize=10)
    for axes in right:
        _draw_calibration(axes, calibration)
    for axes in (left, *right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(True, color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.get_layout_engine().execute(figure)  # once: as long as there is an engine, each file is drawn twice
    figure.set_layout_engine(None)
    return figure


def save_diagnosis(figures: Mapping[str, Any], name: str, path: Path) -> None:
    """The picture as a PNG file."""
    with atomic_write(path, "wb") as file:
        draw_diagnosis(figures, name).savefig(file, format="png", dpi=150)


def _draw_accuracies(axes: Any, figures: Mapping[str, Any]) -> None:
    shares = [(VARIANTS[key], found, IMAGES) for key, found in figures["images"].items()]
    shares += [(LENGTHS[key], found, OTHERS) for key, found in figures["length"]["accuracy"].items()]
    if figures["order"] is not None:
        shares += [("verdicts that flip with the order", figures["order"][FLIPS], OTHERS)]
    shares = [one for one in shares if one[1]["rows"]]
    for place, (_, found, colour) in enumerate(shares):
        low, high = (100 * bound for bound in found["wilson"])
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
        axes.plot(100 * found["share"], place, marker="o", markersize=6, color=colour)
        axes.annotate(f"{100 * found['share']:.1f}", (100 * found["share"], place), (0, 6), ha="center", fontsize=8,
                      textcoords="offset points", color=INK, bbox=LABEL)  # fmt: skip
    axes.axvline(50, color=CHANCE, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(shares)), [label for label, _, _ in shares])
    axes.set_ylim(len(shares) - 0.5, -0.7)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("percent, with 95% interval; dashed: accuracy by chance", fontsize=8)


def _draw_calibration(axes: Any, calibration: Mapping[str, Any]) -> None:
    bins = calibration["bins"]
    predicted, accuracy = (100 * np.array([one[key] for one in bins]) for key in ("predicted", "accuracy"))
    low, high = 100 * np.array([one["wilson"] for one in bins]).T
    axes.plot([50, 100], [50, 100], color=CHANCE, linestyle="--", linewidth=1)
    axes.errorbar(predicted, accuracy, yerr=np.abs([accuracy - low, high - accuracy]), color=IMAGES, marker="o",
                  markersize=4, capsize=2, linewidth=1.2)  # fmt: skip
    axes.set_xlim(48, 102)
    axes.set_ylim(min(40.0, float(low.min()) - 3), 103)
    axes.set_xlabel("percent that sigmoid(score gap) promises", fontsize=8)
    axes.set_ylabel("percent of pairs that are right", fontsize=8)
    axes.set_title(f"Calibration, error {calibration['expected_calibration_error']:.3f}", fontsize=10)
