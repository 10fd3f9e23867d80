"""Summaries of scores, and differences with an interval: no improvement is claimed from two means alone."""

import math
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Z_95 = 1.959963984540054
"""Standard deviations on each side of an interval of 95%."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def summarise(scores: list[float | None], errors: int = 0) -> dict:
    """Mean, standard deviation, range, quantiles and counts; `None` scores are counted and otherwise left out."""
    values = np.array([score for score in scores if score is not None], dtype=np.float64)
    summary = {"count": len(values), "none": len(scores) - len(values), "errors": errors}
    if not len(values):
        return {"mean": None, "std": None, "min": None, "max": None, "quantiles": {}, **summary}
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {str(share): float(np.quantile(values, share)) for share in QUANTILES},
        **summary,
    }


def wilson_interval(successes: float, trials: int) -> tuple[float, float] | None:
    """Wilson's score interval of a share, 95%; `None` without trials.

    The formula of `scipy.stats.binomtest(..).proportion_ci(method="wilson")`, which takes whole successes only: of two
    equal scores, each is half a success.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if trials == 0:
        return None
    share, weight = successes / trials, Z_95**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = Z_95 / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_mean(values: list[float], samples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean with its percentile bootstrap interval.

    Raises:
        ValueError: no values.
    """
    from scipy import stats  # takes longer to import than `--help` may

    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:  # scipy wants two
        return Interval(*3 * [float(array[0])])
    block = max(1, 5_000_000 // max(1, len(array)))  # resampled at once, so that memory stays small
    found = stats.bootstrap(
        [array],
        np.mean,
        n_resamples=samples,
        batch=block,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(array.mean()), float(found.low), float(found.high))


def paired_difference(before: list[float], after: list[float], **options) -> Interval:
    """Mean of after - before over the same rows, with a paired bootstrap interval.

    Raises:
        ValueError: the lists have different lengths, or none.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"a paired difference needs equally many scores, found {len(before)} and {len(after)}")
    return bootstrap_mean([late - early for early, late in zip(before, after, strict=True)], **options)
