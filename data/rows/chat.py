"""Rows that bring their own prompt: a text or chat messages, images, and columns of their own for the rewards.

{"prompt": [{"role": "user", "content": "what is it?"}], "image" | "images"?: path(s), "id"?, "completion"?, ...}
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, StrictStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from data.io.field_types import OneId
from data.io.images import resolve_images
from data.io.records import Location, field_error, parsed_rows
from data.io.unreadable import LeftOut, readable_rows, with_positions_as_ids
from data.rows.messages import Message, message_texts, parse_prompt, place_images
from data.rows.row_images import RecordWithImages

RESERVED = (
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
)  # fmt: skip
"""What TRL's trainers hand to rewards under these names; a column of the data would take its place, or be lost."""

NAME_TAKEN = "expected another name: rewards get something else under this one"


def check_reserved(row: dict, reserved: Iterable[str] = RESERVED) -> None:
    """Raises a pydantic `ValidationError` for a column whose name is taken."""
    for name in reserved:
        if row.get(name) is not None:
            raise field_error(name, NAME_TAKEN, row[name])


class ChatRecord(RecordWithImages):
    """One row; fields that are not named here are kept as columns."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    id: OneId | None = None
    prompt: Any
    completion: Any = None
    gold: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_reserved_columns(cls, row: Any) -> Any:
        if isinstance(row, dict):
            check_reserved(row)
            return {name: value for name, value in row.items() if name not in RESERVED}
        return row

    @field_validator("prompt")
    @classmethod
    def _parse_prompt(cls, prompt: Any) -> list[Message]:
        parsed = parse_prompt(prompt)
        turns = [Message(role="user", content=parsed)] if isinstance(parsed, str) else parsed
        if turns[-1].role not in ("user", "tool"):
            raise PydanticCustomError("prompt", "expected chat messages that end with a turn of the user or of a tool")
        return turns

    @field_validator("completion")
    @classmethod
    def _parse_completion(cls, completion: Any) -> Any:
        """A text as it is, or messages of texts alone."""
        if completion is None or isinstance(completion, str):
            return completion
        turns = parse_prompt(completion)
        if any(part["type"] != "text" for turn in turns for part in turn.content or () if isinstance(part, dict)):
            raise PydanticCustomError("completion", "expected a text, or chat messages of texts alone")
        return [turn.plain() for turn in turns]

    @model_validator(mode="after")
    def _place_images(self) -> "ChatRecord":
        self.prompt, self.images = place_images("prompt", self.prompt, self.images)
        return self

    def row(self, images: list[Any]) -> dict[str, Any]:
        """The columns that were given, with these images."""
        given = {name: getattr(self, name) for name in ("completion", "gold") if name in self.model_fields_set}
        return {"id": self.id, "prompt": self.prompt, **given, **(self.model_extra or {}), "images": images}


def completion_length(completion: str | list[dict[str, Any]]) -> int:
    """Bytes of a completion's texts."""
    texts = [completion] if isinstance(completion, str) else message_texts(completion)
    return sum(len(text.encode()) for text in texts)


def parse_rows_with_prompts(
    rows: Iterable[tuple[Location, Any]], base: Path, check_files: bool, left_out: LeftOut | None = None
) -> list[dict]:
    """Rows with absolute image paths.

    Args:
        check_files: decode every image.
        left_out: notes the rows with an image that cannot be read, which are left out in place of an error; those
            without an id get their position.

    Raises:
        RecordError: lists every problem of every row.
    """
    kept: list[dict] = []
    problems: list[str] = []
    places: list[str] = []
    for location, record in parsed_rows(rows, ChatRecord, problems):
        kept.append(record.row(resolve_images(record.images, base)))
        places.append(str(location))
    kept = with_positions_as_ids(kept, left_out)
    return readable_rows(kept, places, problems, left_out, check_files=check_files)
