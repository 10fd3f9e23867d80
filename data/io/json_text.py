"""Reading JSON to the letter: what Python's reader lets pass in silence, and no file could hold again, is refused."""

import json
import re
from collections.abc import Iterator
from typing import Any

_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|NaN|Infinity|[eE]\+?\d{3}")
"""Texts without any of these hold nothing that `unstorable` finds, and need not be walked through."""


class NotJson(ValueError):
    """A text that is not JSON, or that holds a value no file can hold; `line` is counted from 1, if it is known."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.line = line


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for position, key in enumerate(keys) if key in keys[:position])
        raise NotJson(f"duplicate key {twice!r:.80} in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def decode_json(content: bytes) -> tuple[Any, bool]:
    """The value of a JSON text in UTF-8, with or without a byte order mark, and whether `unstorable` may find more.

    Raises:
        NotJson: says what is wrong, and where.
    """
    try:
        text = content.decode("utf-8-sig")
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = _line_at(error.doc, error.pos)
        found = f" (found {line!r:.80})" if line else ""
        raise NotJson(f"column {error.colno}: not valid JSON: {error.msg}{found}", error.lineno) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        start = error.start - content.rfind(b"\n", 0, error.start) - 1
        raise NotJson(f"not UTF-8 text: {error.reason} at byte {start} of the line", line) from error
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, endless nesting
        raise NotJson(f"not readable as JSON: {error}") from error
    return value, _SUSPECT.search(text) is not None


def parse_json(content: bytes) -> Any:
    """The value of a JSON text that any file can hold again.

    Raises:
        NotJson: says what is wrong, and where: a byte, a column, or a field.

    >>> parse_json(b'{"id": 1, "id": 2}')
    Traceback (most recent call last):
    data.io.json_text.NotJson: duplicate key 'id' in one object
    """
    value, suspect = decode_json(content)
    problem = next(unstorable(value), None) if suspect else None
    if problem is not None:
        raise NotJson(problem)
    return value


def _line_at(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start : len(text) if end < 0 else end].strip()


def half_character(text: str) -> int | None:
    """Where a text has half of a surrogate pair, which no file can hold; `None` if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def unstorable(value: Any) -> Iterator[str]:
    """A sentence for each text, key and number below a value that UTF-8 or JSON cannot hold."""
    waiting: list[tuple[tuple, Any]] = [((), value)]
    while waiting:
        place, found = waiting.pop()
        problem = None
        if isinstance(found, str):
            start = half_character(found)
            problem = None if start is None else f"half of a surrogate pair at character {start}"
        elif isinstance(found, float) and not -float("inf") < found < float("inf"):
            problem = f"expected a finite number (found {found})"
        elif isinstance(found, list):
            waiting += [((*place, number), item) for number, item in reversed(list(enumerate(found)))]
        elif isinstance(found, dict):
            for key in found:
                if half_character(key) is not None:
                    yield f"field '{_dotted(place) or 'the row'}': the key {key!a:.80} holds half of a surrogate pair"
            waiting += [((*place, key), item) for key, item in reversed(found.items())]
        if problem is not None:
            yield f"field '{_dotted(place) or 'the row'}': {problem}"


def _dotted(place: tuple) -> str:
    return ".".join(str(part)[:80].encode("ascii", "backslashreplace").decode() for part in place)
