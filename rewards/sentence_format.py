"""Whether a completion is one plain sentence, whatever it says."""

from rewards.base import Reward

ENDS = ".!?"


class SentenceFormat(Reward):
    """1 for one sentence on one line: a capital letter first, and last the only full stop or other mark; else 0.

    Args:
        max_words: of the sentence.
    """

    name = "sentence_format"

    def __init__(self, max_words: int = 40):
        if max_words < 1:
            raise ValueError(f"max_words: expected at least 1, found {max_words}")
        self.max_words = max_words

    def score(self, text: str) -> float:
        text = text.strip()
        if not text or "\n" in text or not text[0].isupper() or text[-1] not in ENDS:
            return 0.0
        marks = sum(text.count(mark) for mark in ENDS)
        return float(marks == 1 and 2 <= len(text.split()) <= self.max_words)
