"""Responses to a prompt: texts, or texts with images, as models give them that draw.

    "A red circle."
    [{"type": "text", "text": "Here it is:"}, {"type": "image", "image": "circle.png"}]
    {"role": "assistant", "content": ...}, or a list of this one turn: either of the two above

An image stands in its part, so that a response is whole by itself, wherever it goes.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from data.io.digests import image_bytes_digest
from data.io.images import resolve_image
from data.io.records import field_error
from data.rows.messages import Message, check_parts, check_text, texts_of

Response = str | list[dict[str, Any]]
"""A text, or parts of which at least one is an image, each with its image."""


def _content(value: Any) -> Any:
    """What a turn of the assistant says, alone or in a list; everything else as it is."""
    turn = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not isinstance(turn, dict) or "role" not in turn:
        return value
    said = Message.model_validate(turn)
    if said.role != "assistant":
        raise field_error("role", "expected a turn of the assistant", said.role)
    return said.content


def parse_response(value: Any) -> Response:
    """A response in any of its forms; of several parts without an image the texts are joined.

    Raises:
        PydanticCustomError, ValidationError: what is wrong, and its place below the field.

    >>> parse_response([{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}])
    'A dog.'
    """
    content = _content(value)
    if isinstance(content, str):
        return check_text(content)
    if not isinstance(content, list | tuple) or not content:
        expected = "expected a text, parts of texts and images, or a turn of the assistant"
        raise PydanticCustomError("response", "{expected}", {"expected": expected})
    parts = check_parts(content)
    for number, part in enumerate(parts):
        if part["type"] == "image" and "image" not in part:
            raise field_error((number, "image"), "expected the image itself in its part of a response", part)
    return parts if response_images(parts) else check_text("".join(texts_of(parts)))


ParsedResponse = Annotated[Any, BeforeValidator(parse_response)]
"""Of a record's field: a `Response`, in any of its forms."""


def response_images(response: Response) -> list[Any]:
    """The images of a response, in order."""
    return [] if isinstance(response, str) else [part["image"] for part in response if part["type"] == "image"]


def response_parts(response: Response) -> str | list[dict[str, Any]]:
    """What a chat template takes: images are places."""
    if isinstance(response, str):
        return response
    return [{"type": "image"} if part["type"] == "image" else part for part in response]


def image_label(image: Any) -> str:
    """What stands for an image in a text: its path, or what it holds.

    >>> image_label("red.png")
    '[red.png]'
    """
    return f"[{image}]" if isinstance(image, str | os.PathLike) else f"[image {image_bytes_digest(image)[:16]}]"


def response_label(response: Response) -> str:
    """For people, and to tell responses apart: texts as they are, and images as `image_label` has them.

    >>> response_label([{"type": "text", "text": "Here:"}, {"type": "image", "image": "red.png"}])
    'Here: [red.png]'
    """
    if isinstance(response, str):
        return response
    return " ".join(part["text"] if part["type"] == "text" else image_label(part["image"]) for part in response)


def map_images(response: Response, change: Callable[[Any], Any]) -> Response:
    """The response with each of its images changed."""
    if isinstance(response, str):
        return response
    return [{**part, "image": change(part["image"])} if part["type"] == "image" else part for part in response]


def resolve_responses(responses: Iterable[Response], base: Any) -> list[Response]:
    """`data.io.images.resolve_image` of each image of each response."""
    return [map_images(response, lambda image: resolve_image(image, base)) for response in responses]


def images_by_field(images: Sequence[Any], responses: Sequence[Response]) -> list[tuple[str, Any]]:
    """Every image of a row with the name of its field: those of the prompt, then those of each response."""
    of_responses = [
        (f"response.{number}", image) for number, one in enumerate(responses) for image in response_images(one)
    ]
    return [("images", image) for image in images] + of_responses
