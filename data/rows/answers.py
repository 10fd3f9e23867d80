"""The right answers of a row, in each of the forms that data sets have them."""

import re
from collections.abc import Iterable
from typing import Any

from data.errors import UserError

_TEXT_KEYS = ("answer", "text")
"""Where an answer's text stands in VQA's own files, and in HF's question answering data sets."""
SEVERAL = (
    "expected the answers of several annotators, or the right answer as a text that is in no list (with one "
    "annotator, nothing earns more than 0 by the official rule)"
)
EXPECTED = "expected a text, a list of texts, or objects with 'answer' or 'text'"


OPENING_TAG, CLOSING_TAG = (re.compile(tag, re.IGNORECASE | re.ASCII) for tag in ("<answer>", "</answer>"))
"""What a completion encloses its answer in."""
ANNOTATORS = 10
"""How many people answered each question of VQAv2; the official accuracy compares each of them with the others."""


def problem_of_tags(answers: Iterable[str]) -> str | None:
    """Why answers could not stand between <answer> tags, and be read from there; `None` if all of them could.

    >>> problem_of_tags(["red", "a </ANSWER> tag"])
    "item 1: expected an answer without <answer> tags, found 'a </ANSWER> tag'"
    """
    for number, answer in enumerate(answers):
        if OPENING_TAG.search(answer) or CLOSING_TAG.search(answer):
            return f"item {number}: expected an answer without <answer> tags, found {answer!r:.80}"
    return None


class AnswerError(UserError, ValueError):
    """Answers that are neither texts nor objects with texts.

    Attributes:
        expected: what is wrong, without the value.
        found: the value.
    """

    def __init__(self, expected: str, found: Any, shown: str | None = None):
        super().__init__(f"{expected}, found {f'{found!r:.80}' if shown is None else shown}"[:300])
        self.expected, self.found = expected, found


def plain(value: Any) -> Any:
    """The value, an array of numpy as a list: some readers of parquet give arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def read_answers(value: Any) -> list[str]:
    """A list of texts: one text is one answer, objects hold theirs under `answer` or `text`.

    A table's row may hold its list of objects as an object of lists: {"text": [..], "answer_start": [..]}.

    Raises:
        AnswerError: says what was found, and at which place.

    >>> read_answers("red"), read_answers({"text": ["red", "dark red"], "answer_start": [0, 7]})
    (['red'], ['red', 'dark red'])
    >>> read_answers([{"answer": "red", "answer_id": 1}, {"answer": "blue", "answer_id": 2}])
    ['red', 'blue']
    """
    value = plain(value)
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return read_answers(_content(value, ""))
    if not isinstance(value, list | tuple):
        raise AnswerError(EXPECTED, value)
    texts = []
    for number, item in enumerate(value):
        text = _content(item, f"item {number}: ") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise AnswerError(f"item {number}: {EXPECTED}", item)
        texts.append(text)
    return texts


def annotators_answers(value: Any) -> list[str]:
    """The same, for the official VQA accuracy: a text that is no list is the right answer, as if all had given it.

    One annotator's answer could not be matched: there are no others to agree with.

    >>> annotators_answers("red") == annotators_answers({"answer": "red"}) == ["red"] * ANNOTATORS
    True
    >>> annotators_answers(["red"])
    ['red']
    """
    content = _content(value, "") if isinstance(value, dict) else value
    return [content] * ANNOTATORS if isinstance(content, str) else read_answers(value)


def _content(answer: dict, where: str) -> Any:
    """The text, or texts, of an object."""
    key = next((key for key in _TEXT_KEYS if answer.get(key) is not None), None)
    if key is None:
        keys = ", ".join(map(str, answer)) or "nothing"
        raise AnswerError(f"{where}{EXPECTED}", answer, f"an object with {keys}")
    if isinstance(answer[key], dict):
        raise AnswerError(f"{where}{EXPECTED}", answer)
    return answer[key]
