"""Whether a completion is one plain sentence in any script, whatever it says."""

import regex

from data.rows.words import count_words
from rewards.base import Reward

_MARK = regex.compile(r"\p{Sentence_Terminal}|\u0f0d|\u037e|(?<=\p{Greek}\p{M}*);")
"""What ends sentences: Unicode's own list, the shad of Tibetan, and the question mark of Greek."""
_WITHOUT_MARK = regex.compile(r"[\p{Thai}\p{Lao}]\Z")
"""The end of a sentence in a script that has no mark for it."""
_OPENING = "¿¡"


class SentenceFormat(Reward):
    """1 for one sentence on one line: a capital letter first, and last the only full stop or other mark; else 0.

    Scripts without capital letters need none, and Thai and Lao, which have no such mark, need none of those either.

    Args:
        max_words: of the sentence, as `data.rows.words` counts them.
    """

    name = "sentence_format"

    def __init__(self, max_words: int = 40):
        if max_words < 1:
            raise ValueError(f"max_words: expected at least 1, found {max_words}")
        self.max_words = max_words

    def score(self, text: str) -> float:
        text = text.strip()
        if "\n" in text or not _can_begin(text.lstrip(_OPENING)[:1]) or not _ends_once(text):
            return 0.0
        return float(2 <= count_words(text) <= self.max_words)


def _can_begin(letter: str) -> bool:
    """A capital letter, or one of a script that has no other letters for the beginning of a sentence."""
    return letter.isalpha() and letter == letter.title()


def _ends_once(text: str) -> bool:
    """The text ends in the only mark in it, or, in a script without marks, has none."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return _WITHOUT_MARK.search(text) is not None
    return len(marks) == 1 and marks[0].end() == len(text)
