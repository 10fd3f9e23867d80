"""The grammar in which a prompt tells an agent its bounds.

    prompt    =  clause { ("," | ";" | "." | "and" | newline) clause }
    clause    =  [ verb ] { word } bound
    verb      =  keep | require | drop | remove | discard | exclude | reject
    bound     =  [ no | not ] ( lower | upper ) NUMBER  |  between NUMBER and NUMBER  |  from NUMBER to NUMBER
    lower     =  at least | above | over | more than | greater than | minimum | min | >= | >
    upper     =  at most | below | under | less than | up to | maximum | max | <= | <
    NUMBER    =  digits [ "." digits ] [ "%" ]

The quantity that a bound is about is the last one named before it in the prompt, or else the agent's first one.
"drop blur above 0.5" and "keep blur no more than 0.5" mean the same as "keep blur at most 0.5"; bounds are inclusive
either way. Words that the grammar does not know are passed over. Only the first 1,000 characters are read, each once.

    >>> parse_bounds("keep blur at most 0.45", {"blur": (0, 1)})
    {'blur': Bounds(minimum=None, maximum=0.45)}
    >>> parse_bounds("Drop images with an aspect ratio over 2!", {"aspect": (1, None)})
    {'aspect': Bounds(minimum=None, maximum=2.0)}
    >>> parse_bounds("make it nice", {"blur": (0, 1)}) is None
    True
"""

import html
import re
from collections import Counter

from data.reports.measurements import Bounds

MAX_LENGTH = 1_000
_TOKEN = re.compile(r"\d+(?:\.\d+)?%?|[a-z]+|[<>]=?|[,;.\n]", re.ASCII)

_KEEP = {"keep", "require"}
_DROP = {"drop", "remove", "discard", "exclude", "reject"}
_LOWER = {"least", "above", "over", "more", "greater", "minimum", "min", ">", ">="}
_UPPER = {"most", "below", "under", "less", "up", "maximum", "max", "<", "<="}
_NOT = {"no", "not"}
_RANGE = {"between", "from"}
_SEPARATORS = {",", ";", ".", "\n"}

Limits = tuple[float | None, float | None]
"""Smallest and largest value that a quantity can have; `None` means unbounded."""


def _number(token: str) -> float | None:
    if not token[0].isdigit():
        return None
    return float(token[:-1]) / 100 if token.endswith("%") else float(token)


class _Reader:
    """Walks over the tokens of a prompt once, remembering verb, quantity and the kind of bound being read."""

    def __init__(self, quantities: dict[str, Limits]):
        self.quantities = quantities
        shared = Counter(word for name in quantities for word in name.split("_"))
        self.words = {word: name for name in quantities for word in name.split("_") if shared[word] == 1}
        self.quantity = next(iter(quantities))
        self.dropping = False
        self.negated = False
        self.kind: str | None = None
        self.range_start: float | None = None
        self.found: dict[str, Bounds] = {}

    def read(self, token: str) -> None:
        number = _number(token)
        if number is not None:
            self._read_number(number)
        elif token in _KEEP or token in _DROP:
            self.dropping = token in _DROP
        elif token in _NOT:
            self.negated = True
        elif token in _LOWER or token in _UPPER:
            self.kind = "lower" if (token in _LOWER) != self.negated else "upper"
            self.negated = False
        elif token in _RANGE:
            self.kind, self.range_start = "range", None
        elif token in self.words:
            self.quantity = self.words[token]
        elif token in _SEPARATORS:
            self.kind, self.negated = None, False

    def _read_number(self, number: float) -> None:
        if self.kind == "range" and self.range_start is None:
            self.range_start = number
        elif self.kind == "range" and not self.dropping:  # dropping what lies between is not a bound
            self._store(Bounds(self.range_start, number))
        elif self.kind in ("lower", "upper"):
            is_minimum = (self.kind == "lower") != self.dropping
            self._store(Bounds(minimum=number) if is_minimum else Bounds(maximum=number))

    def _store(self, bounds: Bounds) -> None:
        known = self.found.get(self.quantity, Bounds())
        self.found[self.quantity] = Bounds(
            known.minimum if bounds.minimum is None else bounds.minimum,
            known.maximum if bounds.maximum is None else bounds.maximum,
        )
        self.kind = None


def _is_possible(bounds: Bounds, limits: Limits) -> bool:
    low, high = limits
    values = [value for value in (bounds.minimum, bounds.maximum) if value is not None]
    inside = all((low is None or value >= low) and (high is None or value <= high) for value in values)
    return inside and values == sorted(values)


def parse_bounds(prompt: str, quantities: dict[str, Limits]) -> dict[str, Bounds] | None:
    """Bounds that a prompt sets, by quantity.

    Args:
        quantities: the agent's quantities, most important first, with the values they can have. A name such as
            `question_words` is recognised by those of its words that no other name has.

    Returns:
        Bounds of the quantities that the prompt bounds, or `None` if it bounds none, or one outside its limits.
    """
    reader = _Reader(quantities)
    for token in _TOKEN.findall(html.unescape(prompt[:MAX_LENGTH]).lower()):
        reader.read(token)
    possible = all(_is_possible(bounds, quantities[name]) for name, bounds in reader.found.items())
    return reader.found if reader.found and possible else None
