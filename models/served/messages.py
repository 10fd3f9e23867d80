"""Conversations as servers take them: images as data in the message, pixel for pixel."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image


def with_image_data(conversation: Sequence[dict[str, Any]], images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """The messages with each image at its place.

    Args:
        conversation: messages whose content is a text or parts, with a part of type "image" for each image.
        images: in the order of their places.
    """
    waiting = iter(images)
    return [{**message, "content": _content(message["content"], waiting)} for message in conversation]


def _content(content: Any, images: Iterator[Image.Image]) -> Any:
    if not isinstance(content, list):
        return content
    return [_image_part(next(images)) if part["type"] == "image" else part for part in content]


def _image_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": png_address(image)}}


def png_address(image: Image.Image) -> str:
    """A picture as a `data:` address; PNG loses nothing."""
    stored = io.BytesIO()
    image.save(stored, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"
