"""Whether the gap of two scores says how sure the choice is: calibration curve and histograms of scores.

Under the Bradley-Terry model the response with the higher score is the preferred one with probability sigmoid(gap).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.io.records import atomic_write
from rewards.preferences.scored import ScoredPair
from rewards.scoring.statistics import wilson_interval

MAX_BINS = 10
MIN_PAIRS_A_BIN = 10
PREFERRED, REJECTED = "#1b7837", "#c2562d"
INK = "0.25"


def _sigmoid(gaps: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(gaps / 2))  # without overflow


def _bins(gaps: np.ndarray) -> np.ndarray:
    """The bin of each pair: by quantiles, so that bins are about equally full, and equal gaps share one."""
    count = int(np.clip(len(gaps) // MIN_PAIRS_A_BIN, 1, MAX_BINS))
    edges = np.unique(np.quantile(gaps, np.linspace(0, 1, count + 1)))
    return np.searchsorted(edges[1:-1], gaps, side="right")


def calibration(items: Sequence[ScoredPair]) -> dict:
    """The calibration curve.

    Returns:
        bins: by rising gap; of each the smallest and largest gap, the mean probability that sigmoid(gap) gives the
        choice (`predicted`), the share of right choices (`accuracy`, equal scores count half) with its 95% Wilson
        interval, and the number of pairs. expected_calibration_error: mean distance of the two, weighted by pairs.

    >>> calibration([ScoredPair(1, "q", "a", "b", 2.0, 0.0)])["expected_calibration_error"]  # 1 - sigmoid(2)
    0.1192
    """
    signed = np.array([item.gap for item in items])
    gaps, right = np.abs(signed), 0.5 + 0.5 * np.sign(signed)
    predicted, places = _sigmoid(gaps), _bins(gaps)
    bins, distance = [], 0.0
    for place in np.unique(places):
        own = places == place
        count, accuracy = int(own.sum()), float(right[own].mean())
        bins.append(
            {
                "gap": [float(gaps[own].min()), float(gaps[own].max())],
                "predicted": float(predicted[own].mean()),
                "accuracy": accuracy,
                "wilson": wilson_interval(float(right[own].sum()), count),
                "count": count,
            }
        )
        distance += count * abs(bins[-1]["predicted"] - accuracy)
    return {"bins": bins, "expected_calibration_error": round(distance / len(items), 4)}


def score_summary(items: Sequence[ScoredPair]) -> dict:
    """Mean, deviation and range of the scores of preferred and of rejected responses, and of the gap."""
    columns = {
        "preferred": [item.preferred_score for item in items],
        "rejected": [item.rejected_score for item in items],
        "gap": [item.gap for item in items],
    }
    return {
        name: {"mean": float(np.mean(x)), "std": float(np.std(x)), "min": float(np.min(x)), "max": float(np.max(x))}
        for name, x in columns.items()
    }


# -- pictures ---------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _save(figure, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)


def draw_calibration(items: Sequence[ScoredPair], name: str, path: Path) -> None:
    """Share of right choices over the probability that the score gap promises, above how often each was promised."""
    found = calibration(items)
    figure = _figure(5.4, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    predicted = np.array([one["predicted"] for one in found["bins"]])
    accuracy = np.array([one["accuracy"] for one in found["bins"]])
    low, high = np.array([one["wilson"] for one in found["bins"]]).T
    above.plot([0.5, 1], [0.5, 1], color="0.6", linestyle="--", linewidth=1, label="perfectly calibrated")
    spread = np.abs([accuracy - low, high - accuracy])
    above.errorbar(
        predicted, accuracy, yerr=spread, color=PREFERRED, marker="o", markersize=5, capsize=3, linewidth=1.4,
        label="measured, with 95% interval",
    )  # fmt: skip
    above.set_xlim(0.49, 1.01)
    above.set_ylim(min(0.4, float(low.min()) - 0.02), 1.02)
    above.set_ylabel("share of pairs in which the\npreferred response scores higher")
    above.set_title(f"Calibration of {name}\n{len(items):,} pairs, error {found['expected_calibration_error']:.3f}")
    above.legend(frameon=False, loc="upper left")
    below.hist(_sigmoid(np.abs([item.gap for item in items])), bins=np.linspace(0.5, 1, 26), color="0.7")
    below.set_xlabel("sigmoid(score gap): promised probability of being right")
    below.set_ylabel("pairs")
    for axes in (above, below):
        _clean(axes)
    _save(figure, path)


def draw_scores(items: Sequence[ScoredPair], name: str, path: Path) -> None:
    """Histograms of the scores of preferred and rejected responses, and of the gap between them."""
    preferred, rejected, gaps = (
        np.array([getattr(item, key) for item in items]) for key in ("preferred_score", "rejected_score", "gap")
    )
    figure = _figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    edges = np.histogram_bin_edges(np.concatenate([preferred, rejected]), bins=30)
    for values, label, colour in ((preferred, "preferred", PREFERRED), (rejected, "rejected", REJECTED)):
        left.hist(values, bins=edges, color=colour, alpha=0.4, label=f"{label}, mean {values.mean():.2f}")
        left.hist(values, bins=edges, color=colour, histtype="step", linewidth=1.2)
    left.set_xlabel("score")
    left.set_ylabel("responses")
    left.set_title(f"Scores by {name}")
    width = 1.0001 * float(np.abs(gaps).max()) / 15 or 1.0  # of a bar; none reaches across zero
    for values, label, colour in (
        (gaps[gaps > 0], "right", PREFERRED),
        (gaps[gaps < 0], "wrong", REJECTED),
    ):
        bars = np.arange(16) * width * (1 if label == "right" else -1)
        right.hist(values, bins=np.sort(bars), color=colour, alpha=0.65, label=f"{label}: {len(values):,}")
    ties = int((gaps == 0).sum())
    right.bar(0, ties, width=width / 3, color=INK, label=f"tie: {ties:,}")
    right.set_xlabel("score gap, preferred minus rejected")
    right.set_ylabel("pairs")
    right.set_title(f"Score gaps of {len(items):,} pairs")
    for axes in (left, right):
        axes.set_ylim(top=1.28 * axes.get_ylim()[1])  # room for the legend
        axes.legend(frameon=False, loc="upper center", ncols=3, columnspacing=1.2, handlelength=1.2)
        _clean(axes)
    _save(figure, path)
