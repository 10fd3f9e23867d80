"""Whether a verdict is that of the people who ranked the two responses: what a pairwise judge learns from."""

from typing import Any, ClassVar, get_args

from rewards.base import Reward
from rewards.judging.verdicts import Verdict, read_verdict
from rewards.scoring.columns import TypeProblem


def _verdict(value: Any) -> Any:
    if value not in get_args(Verdict):
        raise TypeProblem(f"expected 'A' or 'B', found {value!r:.80}")
    return value


class VerdictAccuracy(Reward):
    """1 for the verdict that `better` names, 0 for the other one and for what cannot be read as one verdict.

    `better` is A or B: which of the two responses, in the order in which they are shown, people ranked higher.
    """

    name = "verdict_accuracy"
    columns = ("better",)
    types: ClassVar = {"better": _verdict}

    def score(self, text: str, better: Verdict | None) -> float | None:
        return None if better is None else float(read_verdict(text) == better)
