"""Drafts of the rows of one rollout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.decoding.drafts.length import FittingLength
from models.decoding.drafts.store import DraftStore


@dataclass
class Drafting:
    """How drafts are made, from one rollout to the next.

    Attributes:
        most: tokens that are looked up at most.
        fitting: how many of them pay; `None` always looks up as many as there may be.
    """

    store: DraftStore
    most: int
    fitting: FittingLength | None = None

    @classmethod
    def of(cls, tokens: int | str) -> "Drafting | None":
        """That of so many tokens, or of as many as pay (`auto`); `None` of 0."""
        if tokens == "auto":
            fitting = FittingLength()
            return cls(DraftStore(), fitting.most, fitting)
        return cls(DraftStore(), int(tokens)) if tokens else None


def parse_drafts(value: Any, name: str) -> int | str:
    """`auto`, or a number of tokens, also as a text.

    Args:
        name: of the setting, for the error.

    Raises:
        ValueError: anything else.
    """
    if value == "auto":
        return value
    try:
        tokens = int(str(value))
    except ValueError:
        tokens = -1
    if tokens < 0:
        raise ValueError(f"{name}: expected auto or a whole number of at least 0, found {value!r}")
    return tokens


class RowDrafts:
    """What rows of a rollout have read, as far as look-ups reach, and what may come next.

    Args:
        prompts: tokens of each row's.
    """

    def __init__(self, drafting: Drafting, prompts: Sequence[Sequence[int]]):
        self.store, self.most, self.fitting = drafting.store, drafting.most, drafting.fitting
        longest = max(self.store.orders)
        self._read = [list(prompt[-longest:]) for prompt in prompts]
        self._looked_up: dict[int, list[int]] = {}

    def of_rows(self, rows: Sequence[int], room: Sequence[int]) -> list[list[int]]:
        """What may come after the last token of each row, at most as many tokens as it has `room` for."""
        length = self.most if self.fitting is None else self.fitting.of_next(len(rows))
        # Where nothing is drafted, one token is looked up all the same: whether it would have been right.
        found = [
            self.store.find(self._read[row], min(max(length, 1), most)) for row, most in zip(rows, room, strict=True)
        ]
        self._looked_up = dict(zip(rows, found, strict=True))
        return [one[:length] for one in found]

    def note(self, rows: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        """The tokens that rows have got."""
        right = compared = 0
        for row, tokens in zip(rows, kept, strict=True):
            start = len(self._read[row])
            self._read[row] += tokens
            self.store.note(self._read[row], start)
            places = list(zip(self._looked_up.get(row, ()), tokens, strict=False))
            right += sum(one == other for one, other in places)
            compared += len(places)
        if self.fitting is not None:
            found = sum(map(bool, self._looked_up.values()))
            self.fitting.note_look_ups(len(self._looked_up), found, right, compared - right)
        self._looked_up = {}

    def note_forward(self, tokens: int, seconds: float) -> None:
        """What a forward of so many tokens took, with sampling."""
        if self.fitting is not None:
            self.fitting.note_forward(tokens, seconds)
