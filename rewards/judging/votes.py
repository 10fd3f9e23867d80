"""What the votes of a judge come to: one outcome of each comparison, shares of wins, and how far votes agree."""

import random
from collections.abc import Mapping, Sequence
from statistics import mean, median

from rewards.judging.verdicts import Scale, Verdict

Pair = tuple[int, int]
"""Places of two responses in their group, the lower one first."""


def meetings(count: int, opponents: int | None, seed: str) -> list[Pair]:
    """Which responses of a group are compared: all with all, or each with at least `opponents` others.

    Of sampled ones each response takes part in equally many, where the group has room for it.

    Args:
        count: responses of the group.
        seed: of the sample.

    >>> meetings(3, None, "")
    [(0, 1), (0, 2), (1, 2)]
    """
    wanted = count - 1 if opponents is None else min(opponents, count - 1)
    circle = list(range(count))
    random.Random(seed).shuffle(circle)
    pairs = {
        tuple(sorted((circle[place], circle[(place + step) % count])))
        for step in range(1, (wanted + 1) // 2 + 1)
        for place in range(count)
    }
    return sorted(pairs)  # type: ignore[arg-type]  # of two each


def share_of_a(votes: Sequence[Verdict | None]) -> float | None:
    """1 where the majority of the readable votes is for A, 0 for B, 0.5 for neither; `None` where none is readable.

    >>> share_of_a(["A", "B", "A", None])
    1.0
    """
    first, second = votes.count("A"), votes.count("B")
    if not first + second:
        return None
    return 0.5 if first == second else float(first > second)


def outcome(as_given: float | None, swapped: float | None) -> float | None:
    """The share of the first response of a pair, over both orders; `None` unless both were readable.

    Args:
        as_given: share of A where the first response is A; swapped: where it is B.

    >>> outcome(1.0, 0.0), outcome(1.0, 1.0), outcome(None, 0.0)
    (1.0, 0.5, None)
    """
    return None if as_given is None or swapped is None else (as_given + 1 - swapped) / 2


def shares_of_wins(count: int, outcomes: Mapping[Pair, float | None]) -> list[float | None]:
    """Of each response, its mean share over the comparisons that have an outcome; `None` without one.

    >>> shares_of_wins(3, {(0, 1): 1.0, (0, 2): 0.5, (1, 2): None})
    [0.75, 0.0, 0.5]
    """
    won: list[list[float]] = [[] for _ in range(count)]
    for (first, second), share in outcomes.items():
        if share is not None:
            won[first].append(share)
            won[second].append(1 - share)
    return [mean(shares) if shares else None for shares in won]


def score_of(votes: Sequence[int | None], scale: Scale) -> float | None:
    """The median of the readable votes, from 0 (the worst score of the scale) to 1; `None` where none is readable.

    >>> score_of([3, None, 5], Scale(1, 5))
    0.75
    """
    readable = [vote for vote in votes if vote is not None]
    return (median(readable) - scale.low) / (scale.high - scale.low) if readable else None


def votes_with_the_most(votes: Sequence[Verdict | int | None]) -> int:
    """How many of the readable votes are the most frequent one.

    >>> votes_with_the_most(["A", "B", None, "A"])
    2
    """
    readable = [vote for vote in votes if vote is not None]
    return max((readable.count(vote) for vote in readable), default=0)
