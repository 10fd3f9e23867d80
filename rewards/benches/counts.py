"""Right and wrong choices of each group of rows, and the figures made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewards.scoring.statistics import wilson_interval


@dataclass(frozen=True)
class Counts:
    """Choices of a group: all of them, those decided, and those decided rightly.

    Attributes:
        tie_credit: what an undecided one counts for in the published accuracy; `None` if it leaves the denominator.
    """

    items: int
    decided: int
    correct: int
    tie_credit: float | None = None

    @classmethod
    def of_gaps(cls, gaps: Sequence[float], tie_credit: float | None = None) -> "Counts":
        """Of pairs, by how much higher the preferred response of each scores; 0 is undecided."""
        return cls(len(gaps), sum(gap != 0 for gap in gaps), sum(gap > 0 for gap in gaps), tie_credit)

    @property
    def ties(self) -> int:
        return self.items - self.decided

    @property
    def _published(self) -> tuple[float, int]:
        """Successes and trials of the published accuracy."""
        if self.tie_credit is None:
            return self.correct, self.decided
        return self.correct + self.tie_credit * self.ties, self.items

    @property
    def accuracy(self) -> float | None:
        successes, trials = self._published
        return successes / trials if trials else None

    @property
    def wilson(self) -> tuple[float, float] | None:
        return wilson_interval(*self._published)

    @property
    def strict_accuracy(self) -> float | None:
        return self.correct / self.items if self.items else None

    def figures(self) -> dict:
        """As they stand in `summary.json`."""
        return {
            "accuracy": self.accuracy,
            "count": self.decided,
            "ties": self.ties,
            "correct": self.correct,
            "n": self.items,
            "wilson": self.wilson,
            "strict_accuracy": self.strict_accuracy,
            "strict_wilson": wilson_interval(self.correct, self.items),
        }


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; `None` without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def accuracy_figures(groups: Mapping[str, Counts], total: Counts, macro_over: Sequence[str]) -> dict:
    """Every figure of `summary.json` that comes from counting.

    Args:
        total: of all rows, at least one.
        macro_over: groups whose plain mean the macro accuracy is.

    Returns:
        groups: for each, accuracy by the published rule (`None` where it has no denominator), count (decided), ties,
        correct, n, strict_accuracy (ties are wrong), and 95% Wilson intervals of both; overall and macro, with strict
        forms; coverage, the decided share; items; macro_groups, those that the macro accuracy is the mean of.
    """
    known = [name for name in macro_over if groups[name].accuracy is not None]
    return {
        "groups": {name: counts.figures() for name, counts in groups.items()},
        "overall": total.accuracy,
        "overall_wilson": total.wilson,
        "macro": mean(groups[name].accuracy for name in macro_over),
        "macro_groups": known,
        "coverage": total.decided / total.items,
        "strict_overall": total.strict_accuracy,
        "strict_macro": mean(groups[name].strict_accuracy for name in macro_over),
        "items": total.items,
        "correct": total.correct,
        "count": total.decided,
        "ties": total.ties,
    }
