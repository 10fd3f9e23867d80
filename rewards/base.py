"""What a reward is.

A reward is called as `reward(completions, **columns)` and returns one `float` or `None` a completion, in order.
`None` means that the reward does not apply to that row. A completion is a text, or a list of chat messages; columns
are lists as long as `completions`. A reward with an attribute `scores_groups = True` is called once a group: with all
completions of one prompt. Any function of this shape is a reward; the built-in ones are small classes, so
that they have parameters and can be pickled to worker processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from data.rows.messages import texts_of
from rewards.scoring.columns import ColumnError, ColumnType, TypeProblem, missing_column, read_column

Completion = str | list[dict[str, Any]]


def completion_text(completion: Completion) -> str:
    """The text of a completion: of chat messages, that of the last one."""
    if isinstance(completion, str):
        return completion
    return "".join(texts_of(completion[-1].get("content"))) if completion else ""


class Reward(ABC):
    """A reward that scores one row at a time. Subclasses set the attributes and define `score`.

    Attributes:
        name: as in recipes and logs.
        columns: columns of the data that `score` takes after the text, in this order.
        types: what each of them holds (`rewards/scoring/columns.py`); `score` gets what the type reads.
        data_types: stricter ones, for the rows of a data set before anything is scored.
        optional: those of them that the data may lack; `score` gets `None` then. One column at least must be there.
        minimum, maximum: range of the scores; the right answer scores `maximum`.
        text_only: depends on texts alone, so that many processes can share the work.
        needs_model: a trained model gives the scores, and not even the right answer is sure of `maximum`.
        scores_groups: compares the completions of a prompt, so that each call has all of one prompt and no others.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    types: ClassVar[dict[str, ColumnType]] = {}
    data_types: ClassVar[dict[str, ColumnType]] = {}
    optional: ClassVar[tuple[str, ...]] = ()
    minimum: float = 0.0
    maximum: float = 1.0
    text_only: ClassVar[bool] = True
    needs_model: ClassVar[bool] = False
    scores_groups: ClassVar[bool] = False

    @property
    def __name__(self) -> str:  # TRL logs a reward under this
        return self.name

    def check_there(self) -> None:  # noqa: B027  not abstract: most rewards need nothing
        """Raises an error where what it asks at an address does not answer, before anything slow begins."""

    def figures(self) -> dict[str, float]:
        """What it tells of itself beside its scores, by name."""
        return {}

    @abstractmethod
    def score(self, text: str, *row: Any) -> float | None:
        """The score of one completion, given its row's `columns`."""

    def __call__(self, completions: list[Completion], **columns: Any) -> list[float | None]:
        missing = [column for column in self.columns if column not in columns]
        needed = [column for column in missing if column not in self.optional]
        if needed or (missing and len(missing) == len(self.columns)):
            having = [column for column, values in columns.items() if isinstance(values, list)]
            raise missing_column(self.name, needed[:1] or self.columns, having)
        if not self.columns:
            return [self.score(completion_text(completion)) for completion in completions]
        empty = [None] * len(completions)
        rows = zip(*(self._read(column, columns.get(column, empty)) for column in self.columns), strict=True)
        return [
            self.score(completion_text(completion), *row) for completion, row in zip(completions, rows, strict=True)
        ]

    def _read(self, column: str, values: Sequence[Any]) -> list[Any]:
        """The values of a column as `score` takes them."""
        read = []
        for position, value in enumerate(values):
            try:
                read.append(read_column(self.types, column, value))
            except TypeProblem as problem:
                where = f"column '{column}', row {position} of the batch"
                raise ColumnError([f"reward '{self.name}': {where}: {problem}"]) from problem
        return read
