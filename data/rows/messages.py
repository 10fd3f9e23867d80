"""Chat messages of a row, and the places of its images in them.

A prompt is a text, or messages whose `content` is a text or parts: `{"type": "text", "text"}`, and `{"type": "image"}`
for the place of an image, which may hold its image itself (`image`). In a user's text `<image>` marks a place too, in
any of its spellings: `<Image>`, `<image/>`, `<img>`, `<|image|>`, or with the image's number, `<image 1>`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, StrictStr, TypeAdapter, field_validator, model_validator
from pydantic_core import PydanticCustomError

from data.io.json_text import half_character
from data.io.records import Record, field_error
from data.rows.row_images import check_image

ROLES = ("system", "user", "assistant", "tool")
_MARK = re.compile(
    r"<(?P<bar>\|?)(?P<kind>image|img|video)[ _-]?(?P<number>[0-9]{1,3})?(?:[ _-]?(?:placeholder|here))?"
    r"\s*/?(?P=bar)>",
    re.IGNORECASE,
)
MAX_CHARACTERS = 200_000
"""Of a text. More is a file that went astray: few models read as many tokens."""
_FOR_IMAGES = re.compile(r"<\|(?:vision_start|vision_end|vision_pad|image_pad|video_pad)\|>")


def promised_image(text: str) -> str | None:
    """The first token in a text that stands for pictures in Qwen's models, which data of no model has a use for.

    Those of other families are found by their processors (`models.families.loading.image_tokens`).
    """
    found = _FOR_IMAGES.search(text)
    return None if found is None else found[0]


def check_text(value: Any) -> Any:
    """The value, unless it is a text that cannot be used."""
    if not isinstance(value, str):
        return value  # its type is checked next
    if not value.strip():
        raise PydanticCustomError("text", "expected a text, and this one is empty")
    return _check_characters(value)


def _check_characters(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        context = {"found": len(text), "limit": MAX_CHARACTERS}
        raise PydanticCustomError("text", "expected at most {limit} characters, and this text has {found}", context)
    token = promised_image(text)
    if token is not None:
        raise PydanticCustomError("text", "the text contains {token}, which promises an image", {"token": token})
    place = half_character(text)
    if place is not None:
        raise PydanticCustomError("text", "half of a surrogate pair at character {place}", {"place": place})
    return text


def _check_part(number: int, part: Any) -> dict[str, Any]:
    """A part without its nulls."""
    if not isinstance(part, dict):
        raise field_error(number, "expected a part with 'type'", part)
    part = {name: value for name, value in part.items() if value is not None}
    kind = part.get("type")
    if kind not in ("text", "image"):
        raise field_error((number, "type"), f"expected parts of type text or image, found {kind!r:.80}", part)
    content = "image" if kind == "image" else "text"
    blank = {"text", "image"} - {content}
    part = {name: value for name, value in part.items() if name not in blank or value != ""}
    further = [name for name in part if name not in ("type", content)]
    if further:
        message = f"expected a part of type {kind} with '{content}' and nothing else"
        raise field_error((number, further[0]), message, part[further[0]])
    if kind == "image" and "image" in part:
        check_image((number, "image"), part["image"])
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise field_error((number, "text"), "expected a text", part.get("text"))
        try:
            check_text(part["text"])
        except PydanticCustomError as error:
            raise field_error((number, "text"), error.message(), part["text"]) from error
    return part


def check_parts(parts: Sequence[Any]) -> list[dict[str, Any]]:
    """Parts of a message, without their nulls.

    Raises:
        ValidationError: what is no part of a text or of an image, or has more than that.
    """
    return [_check_part(number, part) for number, part in enumerate(parts)]


class Message(Record):
    """A turn of a conversation; further fields that are not null, such as `tool_calls`, are kept."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    role: StrictStr
    content: Any = None

    @field_validator("role")
    @classmethod
    def _check_role(cls, role: str) -> str:
        if role not in ROLES:
            raise PydanticCustomError("role", "expected {roles}", {"roles": ", ".join(ROLES)})
        return role

    @field_validator("content")
    @classmethod
    def _check_content(cls, content: Any) -> Any:
        if isinstance(content, str):
            return _check_characters(content)
        if not isinstance(content, list | tuple):
            raise PydanticCustomError("content", "expected a text, or a list of parts")
        return check_parts(content)

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        empty = not self.content or (isinstance(self.content, str) and not self.content.strip())
        may_be_empty = self.role == "system" or bool((self.model_extra or {}).get("tool_calls"))
        if empty and not may_be_empty:
            raise field_error("content", "expected a text, and this one is empty or missing", self.content)
        return self

    @property
    def text(self) -> str:
        return "".join(texts_of(self.content))

    def plain(self) -> dict[str, Any]:
        """As a chat template takes it."""
        turn = {name: value for name, value in self.model_dump().items() if value is not None}
        return {**turn, "content": turn.get("content", "")}


Prompt = str | list[dict[str, Any]]
_TURNS = TypeAdapter(list[Message])


def parse_prompt(prompt: Any) -> str | list[Message]:
    """A text, or messages; for validators of fields.

    Raises:
        PydanticCustomError, ValidationError: what is wrong, and its place below the field.
    """
    if isinstance(prompt, str):
        return check_text(prompt)
    if not isinstance(prompt, list | tuple) or not prompt:
        raise PydanticCustomError("prompt", "expected a text, or a list of chat messages with 'role' and 'content'")
    return _TURNS.validate_python(list(prompt))


def texts_of(content: Any) -> Iterator[str]:
    """The texts of a message's content."""
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list | tuple) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]


def in_parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts, also where they were plain texts.

    >>> in_parts([{"role": "user", "content": "why?"}])
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'why?'}]}]
    """
    return [{**turn, "content": _parts(turn["content"])} if "content" in turn else turn for turn in messages]


def message_texts(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Every text of messages, in order."""
    return [text for turn in messages for text in texts_of(turn.get("content"))]


def promised_images(texts: Mapping[str, Iterable[str]], where: str, tokens: Sequence[str]) -> list[str]:
    """What is wrong with the texts of a row that hold tokens which stand for pictures.

    Args:
        texts: of each field.
        where: the row is.
    """
    return [
        f"{where}: field '{name}': the text contains {token}, which promises an image"
        for name, of_field in texts.items()
        for text in of_field
        for token in tokens
        if token in text
    ]


# -- places of images -------------------------------------------------------------------------------------------------


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def _is_tag(mark: re.Match) -> bool:
    """Whether a mark could be a tag of HTML that a text is about, such as `<img>`."""
    return mark["kind"].lower() != "image" and mark["number"] is None and not mark["bar"]


def _marks(text: str, may_be_tags: bool) -> list[re.Match]:
    """The marks of a text; without those that could be tags of HTML, where the text may be about them."""
    return [mark for mark in _MARK.finditer(text) if not (may_be_tags and _is_tag(mark))]


def _order_of(marks: Sequence[re.Match], count: int) -> list[int] | None:
    """Which image each mark is the place of; `None` where that cannot be told, or some image has no place.

    Marks with numbers count from 0 or from 1. No mark of a video is the place of an image.
    """
    numbers = [None if mark["number"] is None else int(mark["number"]) for mark in marks]
    if len(marks) != count or any(mark["kind"].lower() == "video" for mark in marks):
        return None
    if all(number is None for number in numbers):
        return list(range(count))
    if None in numbers or sorted(numbers) not in (list(range(count)), list(range(1, count + 1))):
        return None
    return [number - min(numbers) for number in numbers]


def _split_at_marks(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A text part with an image part for each of its marks, and without the line breaks around them."""
    marks = list(_MARK.finditer(part["text"])) if part["type"] == "text" else []
    if not marks:
        yield part
        return
    end = 0
    for mark in [*marks, None]:
        piece = part["text"][end : None if mark is None else mark.start()].strip("\n")
        if piece.strip():
            yield {"type": "text", "text": piece}
        if mark is not None:
            yield {"type": "image"}
            end = mark.end()


def _take_images(name: str, turns: list[Message], images: list[Any]) -> list[Any]:
    """The images that stand in parts, which are left as places; or those of the row."""
    places = [part for turn in turns if not isinstance(turn.content, str) for part in turn.content or []]
    places = [part for part in places if part["type"] == "image"]
    own = [part["image"] for part in places if "image" in part]
    if not own:
        return images
    if len(own) != len(places):
        raise field_error(name, f"{len(own)} of {len(places)} image parts hold an image: expected all or none", None)
    if images and images != own:
        raise field_error("images", f"expected none beside the images that the parts of '{name}' hold", images)
    for part in places:
        del part["image"]
    return own


def place_images(name: str, prompt: str | list[Message], images: list[Any]) -> tuple[Prompt, list[Any]]:
    """The prompt as a model takes it, and its images in the order of their places.

    Images without places come before the first text of a user that is not given as parts. Marks with numbers say which
    image each is the place of. `<img>` and `<video>` are words of a text where the images have their places in parts,
    or where there are none.

    Args:
        name: of the prompt's field.

    Raises:
        ValidationError: another number of places than images, or the mark of a video.
    """
    turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    images = _take_images(name, turns, images)
    plain = [turn.plain() for turn in turns]
    places = sum(part["type"] == "image" for turn in plain for part in _parts(turn["content"]))
    may_be_tags = bool(places) or not images
    texts = [(turn.role, text) for turn in turns for text in texts_of(turn.content) if _marks(text, may_be_tags)]
    if texts:
        marks = [mark for _, text in texts for mark in _marks(text, may_be_tags)]
        order = _order_of(marks, len(images))
        if places or order is None or any(role != "user" for role, _ in texts):
            raise _misplaced(name, marks, places, len(images), texts[0][1])
        for turn in plain:
            turn["content"] = [found for part in _parts(turn["content"]) for found in _split_at_marks(part)]
        return plain, [images[number] for number in order]
    waiting = len(images) - places
    open_turn = next((turn for turn in plain if turn["role"] == "user" and isinstance(turn["content"], str)), None)
    if waiting < 0 or (waiting and open_turn is None):
        message = f"expected as many as the messages have places ({places}), found {len(images)}"
        raise field_error("images", message, images)
    if places:  # TRL would place all images again before a plain text
        if waiting:
            open_turn["content"] = [{"type": "image"}] * waiting + _parts(open_turn["content"])
        for turn in plain:
            turn["content"] = _parts(turn["content"])
        return plain, images
    return prompt if isinstance(prompt, str) else plain, images


def _misplaced(name: str, marks: Sequence[re.Match], places: int, images: int, text: str) -> Exception:
    """The error for marks that are not the places of the images."""
    if any(mark["kind"].lower() == "video" for mark in marks):
        message = "a mark of a video in a text, and no videos are read"
    else:
        spellings = ", ".join(dict.fromkeys(mark[0] for mark in marks))
        message = (
            f"{spellings} in a text marks the place of an image: expected {images} in texts of the user, as many as "
            f"there are images, each once, and no image parts beside; found {len(marks)} in texts and {places} parts"
        )
    return field_error(name, message, text)


def without_leading_marks(name: str, text: str, images: Sequence[Any]) -> str:
    """A text whose images come before it anyway, without the `<image>` of each of them at its start, in any spelling.

    Raises:
        ValidationError: `<image>` elsewhere, or another number of them.

    >>> without_leading_marks("question", "<image>\\nwhat is it?", ["0.jpg"])
    'what is it?'
    """
    marks = _marks(text, may_be_tags=not images)
    if not marks:
        return text
    rest = text
    for mark in marks:
        rest = rest.lstrip().removeprefix(mark[0])
    rest = rest.lstrip()
    if _order_of(marks, len(images)) != list(range(len(images))) or _marks(rest, may_be_tags=False) or not rest:
        found = ", ".join(dict.fromkeys(mark[0] for mark in marks))
        message = (
            f"the images come before the text: expected no {found}, or {len(images)} at its start, in their order"
        )
        raise field_error(name, message, text)
    return rest
