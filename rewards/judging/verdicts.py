"""What a judge's completion says: one verdict, or one score, in the stated form; anything else is unreadable.

A completion may reason first and must end with the one element that was asked for. It is never guessed: of two
verdicts, of one in another form, and of one with words after it, none is taken.
"""

import re
from typing import Literal, NamedTuple

Verdict = Literal["A", "B"]
"""Which of two responses is better: the first, or the second."""
VERDICT_TAG = "verdict"
SCORE_TAG = "score"
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,8}", re.ASCII)


class Scale(NamedTuple):
    """The whole numbers that a judge may give, both ends included."""

    low: int = 1
    high: int = 10


def element(tag: str, content: object) -> str:
    """
    >>> element("verdict", "A")
    '<verdict>A</verdict>'
    """
    return f"<{tag}>{content}</{tag}>"


def _last_element(text: str, tag: str) -> str | None:
    """The content of the only element of this name, which must end the text; `None` without one, in linear time.

    Whatever resembles its tags counts as one of them: capital letters, spaces and attributes.
    """
    tags = re.findall(rf"<[\s/]*{tag}", text, re.IGNORECASE)
    if tags != [f"<{tag}", f"</{tag}"]:
        return None
    content, closing, rest = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")
    return content if closing and not rest.strip() else None


def read_verdict(text: str) -> Verdict | None:
    """The verdict of a pairwise judge, or `None` where it cannot be read.

    >>> read_verdict("It is red, as A says. <verdict>A</verdict>")
    'A'
    >>> read_verdict("<verdict>A</verdict> or <verdict>B</verdict>") is None
    True
    """
    match _last_element(text, VERDICT_TAG):
        case "A" | "B" as verdict:
            return verdict
    return None


def read_score(text: str, scale: Scale) -> int | None:
    """The score of a pointwise judge, a whole number within the scale, or `None` where it cannot be read.

    >>> read_score("Right, but rude. <score>7</score>", Scale(1, 10))
    7
    """
    written = _last_element(text, SCORE_TAG)
    if written is None or not _WHOLE_NUMBER.fullmatch(written):
        return None
    return int(written) if scale.low <= int(written) <= scale.high else None
