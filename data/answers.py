"""The right answers of a row, in each of the forms that data sets have them."""

from typing import Any

from data.errors import UserError

_TEXT_KEYS = ("answer", "text")
"""Where an answer's text stands in VQA's own files, and in HF's question answering data sets."""
EXPECTED = "expected a text, a list of texts, or objects with 'answer' or 'text'"


class AnswerError(UserError, ValueError):
    """Answers that are neither texts nor objects with texts."""


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
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return read_answers(_content(value, ""))
    if not isinstance(value, list | tuple):
        raise AnswerError(f"{EXPECTED}, found {value!r:.80}")
    texts = []
    for number, item in enumerate(value):
        text = _content(item, f"item {number}: ") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise AnswerError(f"item {number}: {EXPECTED}, found {item!r:.80}")
        texts.append(text)
    return texts


def _content(answer: dict, where: str) -> Any:
    """The text, or texts, of an object."""
    key = next((key for key in _TEXT_KEYS if answer.get(key) is not None), None)
    if key is None:
        raise AnswerError(f"{where}{EXPECTED}, found an object with {', '.join(map(str, answer)) or 'nothing'}"[:300])
    if isinstance(answer[key], dict):
        raise AnswerError(f"{where}{EXPECTED}, found {answer!r:.80}")
    return answer[key]
