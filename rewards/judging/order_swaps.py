"""Verdicts on pairs in both orders: how many are right, and how many depend on the order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from data.io.field_types import OneId
from data.io.records import Record, RecordError, parse_rows, read_some_rows
from rewards.base import completion_text
from rewards.judging.verdicts import Verdict, read_verdict
from rewards.scoring.statistics import Interval, bootstrap_mean, paired_difference


@dataclass(frozen=True)
class SwappedVerdicts:
    """What a judge said of one pair, each `None` where no verdict could be read.

    Attributes:
        better_first: with the better response as A.
        better_last: with the better response as B.
    """

    better_first: Verdict | None
    better_last: Verdict | None

    @property
    def accuracy(self) -> float:
        """Share of the two verdicts that are right."""
        return ((self.better_first == "A") + (self.better_last == "B")) / 2

    @property
    def flips(self) -> bool | None:
        """Whether the order decides which response is preferred; `None` unless both verdicts could be read."""
        if self.better_first is None or self.better_last is None:
            return None
        return self.better_first == self.better_last


Verdicts = Mapping[int | str, SwappedVerdicts]
"""By the id of the pair."""


def summarise_swaps(pairs: Sequence[SwappedVerdicts]) -> dict[str, Any]:
    """Figures of a judge.

    Returns:
        pairs; accuracy, over all verdicts, unreadable ones as wrong ones, with its 95% bootstrap interval over pairs;
        both_right, the share of pairs whose two verdicts are right; flips, of those with two readable verdicts the
        share in which the order decides; first, the share of A among readable verdicts; unreadable, their share.
        Shares of nothing are `None`.
    """
    accuracy = bootstrap_mean([pair.accuracy for pair in pairs])
    flips = [pair.flips for pair in pairs if pair.flips is not None]
    verdicts = Counter(verdict for pair in pairs for verdict in (pair.better_first, pair.better_last))
    readable = verdicts["A"] + verdicts["B"]
    return {
        "pairs": len(pairs),
        "accuracy": accuracy.estimate,
        "accuracy_interval": [accuracy.low, accuracy.high],
        "both_right": sum(pair.accuracy == 1 for pair in pairs) / len(pairs),
        "flips": sum(flips) / len(flips) if flips else None,
        "first": verdicts["A"] / readable if readable else None,
        "unreadable": verdicts[None] / (2 * len(pairs)),
    }


def accuracy_gain(before: Verdicts, after: Verdicts) -> Interval:
    """How much more accurate a judge is than an earlier one on the same pairs, with a paired bootstrap interval.

    Raises:
        RecordError: a pair that one of them was not asked about.
    """
    if before.keys() != after.keys():
        pair = next(iter(before.keys() ^ after.keys()))
        raise RecordError([f"expected verdicts of both judges on the same pairs, found those of one on {pair!r}"])
    return paired_difference([before[pair].accuracy for pair in after], [one.accuracy for one in after.values()])


def format_swaps(figures: Mapping[str, dict[str, Any]]) -> str:
    """The figures of judges as a text table, in percent, and the gain between two."""
    titles = ("accuracy", "both_right", "flips", "first", "unreadable")
    lines = [f"{'':<10}" + "".join(f"{title:>12}" for title in (*titles, "pairs"))]
    for name, row in figures.items():
        if name != "gain":
            shares = ["-" if row[title] is None else f"{100 * row[title]:.1f}" for title in titles]
            lines.append(f"{name:<10}" + "".join(f"{cell:>12}" for cell in (*shares, row["pairs"])))
    if "gain" in figures:
        lines.append(f"accuracy after - before: {Interval(**figures['gain'])}, 95% interval over pairs")
    return "\n".join(lines)


class _JudgedRow(Record):
    """A row of judge data with a completion, as `rewards.eval --model` writes it."""

    model_config = ConfigDict(extra="ignore")

    pair: OneId
    better: Verdict
    completion: Any


def load_swaps(source: str | Path) -> dict[int | str, SwappedVerdicts]:
    """The verdicts on each pair of a file of completions, by the id of the pair.

    Raises:
        RecordError: lists every problem of every row, and every pair that has not one completion in each order.
    """
    found: dict[int | str, dict[str, list[Verdict | None]]] = {}
    for row in parse_rows(read_some_rows(source, "test"), _JudgedRow):
        orders = found.setdefault(row.pair, {"A": [], "B": []})
        orders[row.better].append(read_verdict(completion_text(row.completion)))
    problems = [
        f"{source}: pair {pair!r}: expected one completion with 'better' {better}, found {len(verdicts)}"
        for pair, orders in found.items()
        for better, verdicts in orders.items()
        if len(verdicts) != 1
    ]
    if problems:
        raise RecordError(problems)
    return {pair: SwappedVerdicts(orders["A"][0], orders["B"][0]) for pair, orders in found.items()}
