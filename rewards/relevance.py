"""How like the right answers an answer is, where it is not one of them: words in common, and letters in common.

Finer than VQA accuracy, and easier to please: "two cats" is like "two dogs".
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar

from data.rows.words import find_words
from rewards.base import Reward
from rewards.scoring import columns as column_types
from rewards.vqa_accuracy import read_answer

COMPARED = 400
"""Characters of an answer whose letters are compared; difflib's cost grows with the square of the length."""

_WORD = re.compile("[a-z0-9]+")
_LATIN = re.compile("[a-z]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Relevance:
    """The best over the right answers, each 0 to 1.

    Attributes:
        token_f1: F1 of the words, of which a repeated one counts as often. They are runs of a-z and 0-9 or, where
            both texts have letters and none of them is one of a-z, the words of any script (`data.rows.words`).
        edit_sim: difflib's ratio: twice the letters in matching blocks, over all letters.
        score: the larger of the two.
    """

    token_f1: float
    edit_sim: float

    @property
    def score(self) -> float:
        return max(self.token_f1, self.edit_sim)


def _comparable(text: str) -> str:
    """Lower-cased and stripped, with é as one letter, whether it was written as one or as two."""
    return unicodedata.normalize("NFC", text.lower().strip())


def _token_f1(text: str, answer: str) -> float:
    """F1 of the words of two comparable texts: in other scripts than Latin, those that `data.rows.words` finds.

    The published figures know runs of a-z and 0-9 alone, also of texts that have others beside them.
    """
    of_any_script = all(_LETTER.search(one) and not _LATIN.search(one) for one in (text, answer))
    words = find_words if of_any_script else _WORD.findall
    found, expected = Counter(words(text)), Counter(words(answer))
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
    text = _comparable(prediction or "")
    expected = dict.fromkeys(_comparable(answer) for answer in answers if answer is not None)
    expected.pop("", None)
    if not text or not expected:
        return Relevance(0.0, 0.0)
    return Relevance(
        max(_token_f1(text, answer) for answer in expected),
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
