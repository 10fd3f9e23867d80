"""Preference accuracy as VL-RewardBench's evaluator computes it, and what that leaves out.

Source: vl-rewardbench/VL_RewardBench, cal.py (9b10abd), with one answer a pair (k = 1). A pair is an agreement if the
preferred response has the higher score, a rejection if it has the lower one, and undecided if the scores are equal.

    accuracy of a group = agreements / (agreements + rejections)
    overall             = the same over all groups together
    macro               = plain mean over the groups

So undecided pairs leave the denominators. `strict` figures count them as wrong, and `coverage` is the decided share.
The published code divides by zero where a group has no decided pair; here its accuracy is `None`, and the macro
accuracy is the mean over the other groups.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewards.scoring.statistics import wilson_interval

GROUPS = ("general", "hallucination", "reasoning")
_GROUP_OF_PREFIX = {
    "RLAIF": "hallucination",
    "RLHF": "hallucination",
    "hallucination": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
    "wildvision": "general",
}
_OTHER_GROUP = "general"


@dataclass(frozen=True)
class ScoredPair:
    """Two responses to one query, of which the first was preferred, and their scores."""

    id: str | int
    query: str
    preferred: str
    rejected: str
    preferred_score: float
    rejected_score: float

    @property
    def gap(self) -> float:
        """How much higher the preferred response scores."""
        return self.preferred_score - self.rejected_score


@dataclass(frozen=True)
class GroupCounts:
    """Pairs of a group: all of them, those decided, and those decided rightly."""

    items: int
    decided: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.decided if self.decided else None

    @property
    def strict_accuracy(self) -> float | None:
        return self.correct / self.items if self.items else None

    def figures(self) -> dict:
        """As they stand in `summary.json`."""
        return {
            "accuracy": self.accuracy,
            "count": self.decided,
            "ties": self.items - self.decided,
            "correct": self.correct,
            "n": self.items,
            "wilson": wilson_interval(self.correct, self.decided),
            "strict_accuracy": self.strict_accuracy,
            "strict_wilson": wilson_interval(self.correct, self.items),
        }


def group_of(item_id: str | int) -> str:
    """The group of an item, by its id up to the first `_` or `-`; capital letters matter, and the rest is general.

    >>> group_of("RLAIF-V_17"), group_of("mmmu_3"), group_of("MMMU_3")
    ('hallucination', 'reasoning', 'general')
    """
    prefix = str(item_id).split("_")[0].split("-")[0]
    return _GROUP_OF_PREFIX.get(prefix, _OTHER_GROUP)


def item_key(pair: ScoredPair) -> str:
    """What tells items apart: id, query and sorted responses. Ids alone are not unique."""
    return str(pair.id) + pair.query + "\t".join(sorted((pair.preferred, pair.rejected)))


def ranked_pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) positions of every two responses of unequal rank; a lower rank is better.

    >>> ranked_pairs([1, 0, 1])
    [(1, 0), (1, 2)]
    """
    places = [(first, second) for first in range(len(ranks)) for second in range(first + 1, len(ranks))]
    unequal = [(first, second) for first, second in places if ranks[first] != ranks[second]]
    return [(a, b) if ranks[a] < ranks[b] else (b, a) for a, b in unequal]


def distinct_items(pairs: Iterable[ScoredPair]) -> list[ScoredPair]:
    """The first pair of every item."""
    items: dict[str, ScoredPair] = {}
    for pair in pairs:
        items.setdefault(item_key(pair), pair)
    return list(items.values())


def count_groups(items: Iterable[ScoredPair]) -> dict[str, GroupCounts]:
    """Counts of each group of `GROUPS`, of items that are distinct already."""
    found: dict[str, list[float]] = {group: [] for group in GROUPS}
    for item in items:
        found[group_of(item.id)].append(item.gap)
    return {
        group: GroupCounts(len(gaps), sum(gap != 0 for gap in gaps), sum(gap > 0 for gap in gaps))
        for group, gaps in found.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def preference_accuracy(pairs: Sequence[ScoredPair]) -> dict:
    """Every figure of `summary.json` that comes from counting.

    Args:
        pairs: in file order; of a repeated item the first counts.

    Returns:
        groups: for each, accuracy (`None` without a decided pair), count (decided), ties, correct, n, strict_accuracy,
        and 95% Wilson intervals of both; overall and macro, with strict forms; coverage; items; duplicates;
        macro_groups, those that the macro accuracy is the mean of.

    Raises:
        ValueError: no pair at all, or a score that is NaN or infinite.

    >>> pair = ScoredPair("mmmu_1", "how many?", "two", "five", 1.5, -0.5)
    >>> preference_accuracy([pair])["groups"]["reasoning"]["accuracy"]
    1.0
    """
    if not pairs:
        raise ValueError("preference accuracy needs at least one pair of unequal rank, found none")
    for pair in pairs:
        if not math.isfinite(pair.preferred_score) or not math.isfinite(pair.rejected_score):
            found = f"{pair.preferred_score} and {pair.rejected_score}"
            raise ValueError(f"item {pair.id!r}: expected finite scores, found {found}")
    items = distinct_items(pairs)
    groups = count_groups(items)
    total = GroupCounts(
        *(sum(getattr(group, name) for group in groups.values()) for name in GroupCounts.__annotations__)
    )
    return {
        "groups": {name: counts.figures() for name, counts in groups.items()},
        "overall": total.accuracy,
        "overall_wilson": wilson_interval(total.correct, total.decided),
        "macro": _mean(counts.accuracy for counts in groups.values()),
        "macro_groups": [name for name, counts in groups.items() if counts.decided],
        "coverage": total.decided / total.items,
        "strict_overall": total.strict_accuracy,
        "strict_macro": _mean(counts.strict_accuracy for counts in groups.values()),
        "items": total.items,
        "correct": total.correct,
        "count": total.decided,
        "ties": total.items - total.decided,
        "duplicates": len(pairs) - total.items,
    }
