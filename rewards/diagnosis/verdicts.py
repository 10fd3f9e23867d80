"""Which of two responses a scorer prefers, counted row by row: accuracy, and what the order of the responses does.

Equal scores are half a right verdict, so that chance, and a scorer to whom all responses are the same, have 50%. A row
counts as one, however many pairs its responses make: they are no independent trials.
"""

from collections.abc import Sequence
from typing import Any

from rewards.preferences.scored import ranked_pairs
from rewards.scoring.statistics import wilson_interval

FLIPS, FIRST = "flips", "first"
Orders = Sequence[Sequence[float]]
"""Scores of one row's responses: once, or as they are and with the responses in reversed order. In both the responses
have the same places."""


def preference(scores: Sequence[float], pair: tuple[int, int]) -> float:
    """1 if the first of two responses scores higher, 0 if the second does, 0.5 if they score the same.

    >>> preference([0.2, 1.5], (1, 0))
    1.0
    """
    first, second = (scores[place] for place in pair)
    return float(first > second) + 0.5 * (first == second)


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


def share(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one value of 0 to 1 a row, with its 95% Wilson interval; `None` without rows."""
    estimate = mean(values) if values else None
    return {"share": estimate, "wilson": wilson_interval(sum(values), len(values)), "rows": len(values)}


def accuracy_of_row(orders: Orders, ranks: Sequence[float]) -> float:
    """Share of a row's pairs in people's order."""
    return mean([preference(scores, pair) for scores in orders for pair in ranked_pairs(ranks)])


def order_effect(rows: Sequence[Orders], ranks: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """What the order of the responses does to the verdicts on pairs of unequal rank.

    Args:
        rows: of each, the scores in both orders.

    Returns:
        flips: share of the pairs on which the verdict changes, also to or from equal scores. first: share of the
        verdicts for the response that stands first, 50% without a bias.
    """
    flips, first = [], []
    for (as_given, reversed_), of_row in zip(rows, ranks, strict=True):
        pairs = [(min(pair), max(pair)) for pair in ranked_pairs(of_row)]
        before = [preference(as_given, pair) for pair in pairs]
        after = [preference(reversed_, pair) for pair in pairs]
        flips.append(mean([float(one != other) for one, other in zip(before, after, strict=True)]))
        first.append(mean([*before, *(1 - value for value in after)]))
    return {FLIPS: share(flips), FIRST: share(first)}
