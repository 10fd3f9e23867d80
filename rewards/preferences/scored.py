"""Rows of preferences with a score for every response, from any model, as `rewards.reward_bench --scores` reads them.

    {"id": "mmmu_1", "query": "...", "response": ["...", "..."], "human_ranking": [0, 1], "scores": [1.5, -0.5]}

Further fields may stand beside. A lower rank is better.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictStr, TypeAdapter, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from data.io.field_types import Finite, OneId
from data.io.json_text import half_character
from data.io.records import Record
from data.rows.answers import plain
from data.rows.messages import Message
from data.rows.responses import parse_response, response_label
from rewards.scoring.model_scores import prompt_text


@dataclass(frozen=True)
class ScoredPair:
    """Two responses to one query, of which the first was preferred, and their scores."""

    id: str | int
    query: str
    preferred: str
    rejected: str
    preferred_score: float
    rejected_score: float

    @property
    def gap(self) -> float:
        """How much higher the preferred response scores."""
        return self.preferred_score - self.rejected_score


def ranked_pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) positions of every two responses of unequal rank; a lower rank is better.

    >>> ranked_pairs([1, 0, 1])
    [(1, 0), (1, 2)]
    """
    places = [(first, second) for first in range(len(ranks)) for second in range(first + 1, len(ranks))]
    unequal = [(first, second) for first, second in places if ranks[first] != ranks[second]]
    return [(a, b) if ranks[a] < ranks[b] else (b, a) for a, b in unequal]


_TURNS = TypeAdapter(list[Message])


def check_encodable(text: Any) -> Any:
    """The value, unless it is a text that no file can hold, because JSON escapes in it are halves of a character."""
    place = half_character(text) if isinstance(text, str) else None
    if place is not None:
        raise PydanticCustomError("text", "half of a surrogate pair at character {place}", {"place": place})
    return text


def _query_as_text(query: Any) -> Any:
    """Chat messages by their texts, everything else as it is."""
    if not isinstance(query, list) or not all(isinstance(turn, dict) for turn in query):
        return query
    return prompt_text([turn.plain() for turn in _TURNS.validate_python(query)])


def _as_text(response: Any) -> Any:
    """A response by its text; one with images by what tells it apart from others."""
    return response_label(parse_response(response)) if isinstance(response, list | dict) else response


Numbers = Annotated[list[Finite], BeforeValidator(plain)]


class ScoredPreference(Record):
    """One row; see the module's docstring.

    Attributes:
        category: by which a bench divides its figures; set by its reader (`rewards/benches/base.py`).
    """

    model_config = ConfigDict(extra="ignore")

    id: OneId
    query: Annotated[StrictStr, BeforeValidator(_query_as_text)]
    response: Annotated[
        list[Annotated[StrictStr, BeforeValidator(_as_text)]], BeforeValidator(plain), Field(min_length=2)
    ]
    human_ranking: Numbers
    scores: Numbers
    category: StrictStr = ""

    @field_validator("id", "query", "response", "category")
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


def all_pairs(preferences: Iterable[ScoredPreference]) -> list[ScoredPair]:
    """Those of every row, in order."""
    return [pair for preference in preferences for pair in preference.pairs()]


def equal_ranks(preferences: Sequence[ScoredPreference]) -> int:
    """How many twos of responses have equal ranks, so that they are no pairs."""
    counts = [len(preference.response) for preference in preferences]
    return sum(count * (count - 1) // 2 for count in counts) - len(all_pairs(preferences))
