"""Whether scores follow the length of responses, beyond what people do.

Lengths are in characters of text. Responses to one prompt are compared with each other alone, so that long answers to
hard questions count for nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data.rows.messages import texts_of
from data.rows.responses import Response
from rewards.diagnosis.verdicts import mean, preference, share
from rewards.preferences.scored import ranked_pairs
from rewards.scoring.statistics import bootstrap_mean, paired_difference

SHORTER, LONGER, EQUAL = "shorter", "longer", "equal"
"""The better response of a pair, compared with the worse one."""


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, of -1 to 1, with mean ranks for equal values; 0 if `second` is constant, `None` if `first` is.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    from scipy.stats import rankdata  # takes longer to import than `--help` may

    ranks = rankdata(first), rankdata(second)
    left, right = (of_one - of_one.mean() for of_one in ranks)
    if not left.any():
        return None
    spread = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / spread if spread else 0.0


def _kind(lengths: Sequence[int], pair: tuple[int, int]) -> str:
    better, worse = (lengths[place] for place in pair)
    return EQUAL if better == worse else SHORTER if better < worse else LONGER


def accuracy_by_length(
    lengths: Sequence[Sequence[int]], ranks: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """Accuracy on the pairs whose better response is the shorter one, the longer one, or as long; a row's pairs of one
    kind count as one."""
    found: dict[str, list[float]] = {SHORTER: [], LONGER: [], EQUAL: []}
    for of_row, row_ranks, row_scores in zip(lengths, ranks, scores, strict=True):
        pairs = ranked_pairs(row_ranks)
        for kind, values in found.items():
            right = [preference(row_scores, pair) for pair in pairs if _kind(of_row, pair) == kind]
            values += [mean(right)] if right else []
    return {kind: share(values) for kind, values in found.items()}


def length_bias(
    responses: Sequence[Sequence[Response]], ranks: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Figures of rows of responses.

    Args:
        ranks: by people; lower is better.
        scores: one a response.

    Returns:
        accuracy: of pairs by length (`accuracy_by_length`). correlation, people: mean rank correlation of length with
        score and with people's order, with 95% bootstrap intervals; difference: of the two, paired by rows. These are
        `None`, and prompts, of which they are the mean, 0, if all responses to each prompt have the same length.
    """
    lengths = [[sum(map(len, texts_of(response))) for response in of_row] for of_row in responses]
    by_score = [rank_correlation(*of_row) for of_row in zip(lengths, scores, strict=True)]
    by_people = [
        rank_correlation(of_row, [-rank for rank in row_ranks])
        for of_row, row_ranks in zip(lengths, ranks, strict=True)
    ]
    scored, preferred = ([value for value in values if value is not None] for values in (by_score, by_people))
    intervals: dict[str, Any] = dict.fromkeys(("correlation", "people", "difference"))
    if scored:
        intervals = {
            "correlation": asdict(bootstrap_mean(scored)),
            "people": asdict(bootstrap_mean(preferred)),
            "difference": asdict(paired_difference(preferred, scored)),
        }
    return {"accuracy": accuracy_by_length(lengths, ranks, scores), **intervals, "prompts": len(scored)}
