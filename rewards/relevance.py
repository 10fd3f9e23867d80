"""How like the right answers an answer is, where it is not one of them: words in common, and letters in common.

Finer than VQA accuracy, and easier to please: "two cats" is like "two dogs".
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar

from rewards import columns as column_types
from rewards.base import Reward
from rewards.vqa_accuracy import read_answer

COMPARED = 400
"""Characters of an answer whose letters are compared; difflib's cost grows with the square of the length."""

_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class Relevance:
    """The best over the right answers, each 0 to 1.

    Attributes:
        token_f1: F1 of the words (runs of a-z and 0-9; one that stands twice counts twice).
        edit_sim: difflib's ratio: twice the letters in matching blocks, over all letters.
        score: the larger of the two.
    """

    token_f1: float
    edit_sim: float

    @property
    def score(self) -> float:
        return max(self.token_f1, self.edit_sim)


def _token_f1(found: Counter[str], expected: Counter[str]) -> float:
    common = (found & expected).total()
    return 2 * common / (found.total() + expected.total()) if common else 0.0


def _edit_similarity(text: str, answer: str) -> float:
    """difflib's ratio; of longer texts the first `COMPARED` letters are matched, and all of them count as length.

    Equal texts are 1, also where difflib passes over frequent letters, as it does from 200 on.
    """
    if text == answer:
        return 1.0
    matcher = SequenceMatcher(None, text[:COMPARED], answer[:COMPARED])
    if len(text) <= COMPARED and len(answer) <= COMPARED:
        return matcher.ratio()
    matched = sum(block.size for block in matcher.get_matching_blocks())
    return 2 * matched / (len(text) + len(answer))


def relevance(prediction: str | None, answers: Sequence[str | None]) -> Relevance:
    """Likeness of a prediction to the right answers; lower-cased and stripped. Empty ones are like nothing.

    Args:
        answers: `None`s among them are passed over.

    >>> relevance("two cats", ["two dogs", "2"])
    Relevance(token_f1=0.5, edit_sim=0.625)
    """
    text = (prediction or "").lower().strip()
    expected = dict.fromkeys(answer.lower().strip() for answer in answers if answer is not None)
    expected.pop("", None)
    if not text or not expected:
        return Relevance(0.0, 0.0)
    words = Counter(_WORD.findall(text))
    return Relevance(
        max(_token_f1(words, Counter(_WORD.findall(answer))) for answer in expected),
        max(_edit_similarity(text, answer) for answer in expected),
    )


class RelevanceReward(Reward):
    """Likeness of an answer, plain or between <answer> tags, to the right ones: words or letters in common, 0 to 1."""

    name = "relevance"
    columns = ("answers",)
    types: ClassVar = {"answers": column_types.answers_with_gaps}
    data_types: ClassVar = {"answers": column_types.some_answers}

    def score(self, text: str, answers: Sequence[str] | None) -> float | None:
        if not answers:
            return None
        return relevance(read_answer(text), answers).score
