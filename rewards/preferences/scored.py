"""Rows of preferences with a score for every response, from any model, as `rewards.reward_bench --scores` reads them.

    {"id": "mmmu_1", "query": "...", "response": ["...", "..."], "human_ranking": [0, 1], "scores": [1.5, -0.5]}

Further fields may stand beside. A lower rank is better.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from data.io.field_types import Finite, OneId
from data.io.json_text import half_character
from data.io.records import Record, parse_rows, read_some_rows
from data.rows.answers import plain
from rewards.preferences.accuracy import ScoredPair, ranked_pairs


def check_encodable(text: Any) -> Any:
    """The value, unless it is a text that no file can hold, because JSON escapes in it are halves of a character."""
    place = half_character(text) if isinstance(text, str) else None
    if place is not None:
        raise PydanticCustomError("text", "half of a surrogate pair at character {place}", {"place": place})
    return text


Numbers = Annotated[list[Finite], BeforeValidator(plain)]


class ScoredPreference(Record):
    """One row; see the module's docstring."""

    model_config = ConfigDict(extra="ignore")

    id: OneId
    query: StrictStr
    response: Annotated[list[StrictStr], BeforeValidator(plain), Field(min_length=2)]
    human_ranking: Numbers
    scores: Numbers

    @field_validator("id", "query", "response")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            check_encodable(text)
        return value

    @field_validator("human_ranking", "scores")
    @classmethod
    def _check_length(cls, value: list[float], info: ValidationInfo) -> list[float]:
        responses = info.data.get("response")  # missing if it was refused itself
        if responses is not None and len(value) != len(responses):
            context = {"expected": len(responses), "count": len(value)}
            raise PydanticCustomError("length", "expected {expected} numbers, one a response, not {count}", context)
        return value

    def pairs(self) -> list[ScoredPair]:
        """Every two responses of unequal rank, the better one first."""
        return [
            ScoredPair(
                self.id,
                self.query,
                self.response[better],
                self.response[worse],
                self.scores[better],
                self.scores[worse],
            )
            for better, worse in ranked_pairs(self.human_ranking)
        ]


def load_scored_preferences(source: str | Path, split: str = "test") -> list[ScoredPreference]:
    """Every row of a file or folder (`data.io.records.read_some_rows`), in order.

    Raises:
        RecordError: lists every problem of every row, by file, line and field.
    """
    return parse_rows(read_some_rows(source, split), ScoredPreference)


def equal_ranks(preferences: Sequence[ScoredPreference]) -> int:
    """How many twos of responses have equal ranks, so that they are no pairs."""
    counts = [len(preference.response) for preference in preferences]
    return sum(count * (count - 1) // 2 for count in counts) - sum(len(one.pairs()) for one in preferences)
