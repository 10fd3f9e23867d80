"""How good predicted factors are: the usual figures of multi-label classification, by scikit-learn.

    factor_metrics(probabilities, labels, thresholds)["f1_micro"]

Shapes: probabilities and labels are (N, factors), labels of 0 and 1; thresholds (factors,).
"""

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from models.factors.model import DEFAULT_THRESHOLD

SMALLEST = 1e-7
"""Probabilities are kept so far from 0 and 1 for the cross-entropy."""


def choice_metrics(chosen: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Figures of a choice of factors for each image, from 0 to 1.

    Args:
        chosen: (N, factors), whether a factor is predicted.

    Returns:
        `subset_accuracy` (all factors of an image right), `f1_micro`, `f1_macro`, `precision_micro`, `recall_micro`;
        a ratio without a denominator counts 0.
    """
    chosen, labels = np.asarray(chosen).astype(int), np.asarray(labels).astype(int)
    figures = {
        "subset_accuracy": accuracy_score(labels, chosen),
        "f1_micro": f1_score(labels, chosen, average="micro", zero_division=0),
        "f1_macro": f1_score(labels, chosen, average="macro", zero_division=0),
        "precision_micro": precision_score(labels, chosen, average="micro", zero_division=0),
        "recall_micro": recall_score(labels, chosen, average="micro", zero_division=0),
    }
    return {name: float(value) for name, value in figures.items()}


def factor_metrics(probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> dict[str, float]:
    """The figures of `choice_metrics`, and `bce` (mean binary cross-entropy, nats) and `map` (mean average precision).

    Factors without a positive example have no average precision and are left out of `map`; without any, it is 0.
    """
    labels = np.asarray(labels).astype(int)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    inside = probabilities.clip(SMALLEST, 1 - SMALLEST)
    figures = choice_metrics(probabilities >= thresholds, labels)
    figures["bce"] = float(-np.where(labels == 1, np.log(inside), np.log1p(-inside)).mean())
    present = labels.any(axis=0)
    averages = [
        average_precision_score(labels[:, column], probabilities[:, column]) for column in np.flatnonzero(present)
    ]
    return figures | {"map": float(np.mean(averages)) if averages else 0.0}


def fit_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the best F1 for one factor, in the middle of the gap in which it lies.

    Args:
        probabilities, labels: (N,). Without a positive example the default threshold is returned.

    >>> round(fit_threshold(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1])), 3)
    0.5
    """
    if not np.any(labels):
        return DEFAULT_THRESHOLD
    precision, recall, thresholds = precision_recall_curve(labels, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, SMALLEST)
    best = thresholds[int(np.argmax(f1[:-1]))]
    lower = probabilities[probabilities < best]
    return float((best + (lower.max() if len(lower) else 0.0)) / 2)


def fit_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """`fit_threshold` of every factor."""
    return [fit_threshold(probabilities[:, column], labels[:, column]) for column in range(labels.shape[1])]


def majority_choice(labels: np.ndarray) -> np.ndarray:
    """(factors,): what always to predict, of most use without looking: the most frequent factors, as many as give the
    best F1 (micro) on these labels."""
    order = np.argsort(-labels.mean(axis=0), kind="stable")
    best, best_f1 = np.zeros(labels.shape[1], dtype=int), -1.0
    for count in range(1, labels.shape[1] + 1):
        chosen = np.zeros(labels.shape[1], dtype=int)
        chosen[order[:count]] = 1
        f1 = choice_metrics(np.tile(chosen, (len(labels), 1)), labels)["f1_micro"]
        if f1 > best_f1:
            best, best_f1 = chosen, f1
    return best
