"""Places of images in responses, also where the chat template writes none.

Templates are made for models that answer in texts: that of Qwen3-VL writes the texts alone of an assistant's turn.
What it writes of an image in a user's turn then stands in the response too, where the image has its part.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from models.families.loading import image_tokens, render

_MARK = "\ue000"
"""A private-use character, of no text and no template."""


def render_with_images(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """The conversation as the chat template writes it, with a place for every image of its last turn.

    Raises:
        ValueError: a template that neither writes images of responses nor shows how it writes those of users.
    """
    text, response = render(processor, messages), messages[-1]
    places = sum(
        part.get("type") == "image" for turn in messages for part in turn["content"] if isinstance(part, dict)
    )
    token, written = _place(processor, processor.chat_template)
    if isinstance(response["content"], str) or token is None or text.count(token) == places:
        return text
    marked = [{"type": "text", "text": _MARK} if part["type"] == "image" else part for part in response["content"]]
    text = render(processor, [*messages[:-1], {**response, "content": marked}]).replace(_MARK, written)
    if text.count(token) != places:
        raise ValueError(
            f"the chat template writes {text.count(token)} of {places} images, some of them in a response"
        )
    return text


@lru_cache(maxsize=8)
def _place(processor: Any, template: str) -> tuple[str | None, str]:
    """A token of which each image has one, and all that the template writes of an image between two texts."""
    mark = {"type": "text", "text": _MARK}
    text = render(processor, [{"role": "user", "content": [mark, {"type": "image"}, mark]}])
    token = next((token for token in image_tokens(processor) if text.count(token) == 1), None)
    return token, text.split(_MARK)[1]
