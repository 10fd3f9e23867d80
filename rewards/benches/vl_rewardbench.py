"""VL-RewardBench, by its own evaluator, and what that leaves out. Preferences of one's own are counted so too.

Source: arXiv 2411.17451; vl-rewardbench/VL_RewardBench, cal.py (9b10abd), with one answer a pair (k = 1). A pair is an
agreement if the preferred response has the higher score, a rejection if it has the lower one, and undecided if the
scores are equal.

    accuracy of a group = agreements / (agreements + rejections)
    overall             = the same over all groups together
    macro               = plain mean over the groups

So undecided pairs leave the denominators. `strict` figures count them as wrong, and `coverage` is the decided share.
The published code divides by zero where a group has no decided pair; here its accuracy is `None`, and the macro
accuracy is the mean over the other groups.

Columns: `id`, `query`, `response` (2), `image`, `human_ranking`. Any row that a reward model can be trained on is read
as well (`data/preferences.py`).
"""

import math
from collections.abc import Iterable, Sequence

from rewards.benches.base import Bench, Figures
from rewards.benches.counts import Counts, accuracy_figures
from rewards.preferences.scored import ScoredPair, ScoredPreference, all_pairs

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


def distinct_items(pairs: Iterable[ScoredPair]) -> list[ScoredPair]:
    """The first pair of every item."""
    items: dict[str, ScoredPair] = {}
    for pair in pairs:
        items.setdefault(item_key(pair), pair)
    return list(items.values())


def preference_accuracy(pairs: Sequence[ScoredPair]) -> Figures:
    """The figures, and how many pairs are repeated items (`duplicates`).

    Args:
        pairs: in file order; of a repeated item the first counts.

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
    gaps: dict[str, list[float]] = {group: [] for group in GROUPS}
    for item in items:
        gaps[group_of(item.id)].append(item.gap)
    groups = {group: Counts.of_gaps(of_group) for group, of_group in gaps.items()}
    total = Counts.of_gaps([item.gap for item in items])
    return accuracy_figures(groups, total, GROUPS) | {"duplicates": len(pairs) - len(items)}


def _convert(row: dict) -> dict:
    return {**row, "category": group_of(row.get("id", ""))}


def _figures(preferences: Sequence[ScoredPreference]) -> Figures:
    return preference_accuracy(all_pairs(preferences))


def _pairs(preferences: Sequence[ScoredPreference]) -> list[ScoredPair]:
    return distinct_items(all_pairs(preferences))


VL_REWARDBENCH = Bench(
    name="vl_rewardbench",
    title="VL-RewardBench",
    fields=frozenset(),
    convert=_convert,
    figures=_figures,
    pairs=_pairs,
)
