"""What a reward model is asked: conversations that end with the response to be scored, and images of their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from data.io.digests import image_bytes_digest
from data.io.images import ImageSource
from data.rows.messages import parse_prompt, place_images
from data.rows.responses import Response, parse_response, response_parts

Prompt = str | Sequence[dict[str, Any]]
"""A question, or chat messages without the response."""


@dataclass(frozen=True)
class ResponseGroup:
    """One prompt with the responses to score.

    Attributes:
        prompt: question or chat messages.
        images: of the prompt, in order; placed before its first user text, if the messages do not place them.
        responses: texts, or texts with images.
    """

    prompt: Prompt
    images: Sequence[ImageSource]
    responses: Sequence[Response]


def read_requests(
    prompts: Any, images: Any, responses: Any
) -> tuple[list[Prompt], list[list[ImageSource]], list[Response]]:
    """Prompts with places for their images, the images of each, and responses, whatever form they came in.

    A prompt is a question or chat messages, whose parts may hold their images; the images of one are a list, one image
    alone, or `None`; a response is a text, parts of texts and images, or chat messages of which the last one counts.

    Raises:
        TypeError: something else; says what is expected.
        ValueError: lists of different lengths, or a prompt that cannot be used.
    """
    for name, values in (("prompts", prompts), ("responses", responses), ("images", [] if images is None else images)):
        if isinstance(values, str | bytes | dict) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
            raise TypeError(f"{name}: expected a list, one entry a response, found {type(values).__name__}")
    images = [None] * len(prompts) if images is None else images
    if not len(prompts) == len(images) == len(responses):
        found = f"{len(prompts)}, {len(images)} and {len(responses)}"
        raise ValueError(f"prompts, images and responses: expected as many of each, found {found}")
    asked, seen = [], []
    for number, (prompt, pictures) in enumerate(zip(prompts, images, strict=True)):
        placed, found = _read_prompt(number, prompt, _read_images(number, pictures))
        asked.append(placed)
        seen.append(found)
    return asked, seen, [_read_response(number, response) for number, response in enumerate(responses)]


def image_names(images: Sequence[Sequence[ImageSource]]) -> list[list[str]]:
    """For each prompt, a name of each of its images: equal for the same path, and for images in memory or bytes with
    the same content, because GRPO opens a prompt's images anew for each of its completions.

    Raises:
        ImageError: an image that cannot be used.
    """
    digests: dict[int, str] = {}  # by object, which are many times the same

    def name(image: ImageSource) -> str:
        if isinstance(image, str | Path):
            return str(image)
        if id(image) not in digests:
            digests[id(image)] = image_bytes_digest(image)
        return digests[id(image)]

    return [[name(image) for image in of_prompt] for of_prompt in images]


def _read_images(number: int, images: Any) -> list[ImageSource]:
    """The images of a prompt as a list."""
    if images is None:
        return []
    images = list(images) if isinstance(images, list | tuple) else [images]
    for image in images:
        if not isinstance(image, str | Path | bytes | dict) and not hasattr(image, "convert"):
            raise TypeError(f"images[{number}]: expected paths, bytes or images, found {type(image).__name__}")
    return images


def _read_prompt(number: int, prompt: Any, images: list[ImageSource]) -> tuple[Prompt, list[ImageSource]]:
    if isinstance(prompt, dict) or not isinstance(prompt, str | list | tuple):
        expected = "expected a question or a list of chat messages"
        raise TypeError(f"prompts[{number}]: {expected}, found {type(prompt).__name__}")
    if not isinstance(prompt, str) and not all(isinstance(turn, dict) for turn in prompt):
        raise TypeError(f"prompts[{number}]: expected a question or a list of chat messages, found {prompt!r:.80}")
    try:
        return place_images("prompt", prompt if isinstance(prompt, str) else parse_prompt(prompt), images)
    except (ValidationError, PydanticCustomError) as error:
        raise ValueError(f"prompts[{number}]: {_problems(error)}") from error


def _problems(error: ValidationError | PydanticCustomError) -> str:
    if isinstance(error, PydanticCustomError):
        return error.message()
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))


def _read_response(number: int, response: Any) -> Response:
    if isinstance(response, str):
        return response
    if isinstance(response, list | tuple) and response and all(isinstance(one, dict) for one in response):
        try:
            return parse_response(response if "role" not in response[-1] else [response[-1]])
        except (ValidationError, PydanticCustomError) as error:
            raise ValueError(f"responses[{number}]: {_problems(error)}") from error
    expected = (
        "expected a text, parts, or chat messages that end with it; a prompt with several responses is given for each"
    )
    raise TypeError(f"responses[{number}]: {expected}; found {response!r:.80}")


def reward_messages(
    prompt: Prompt, images: int, response: Response, system_prompt: str | None
) -> list[dict[str, Any]]:
    """The conversation that is scored; images are places.

    Args:
        prompt: a question, or chat messages.
        images: number of images of the prompt.
        system_prompt: takes the place of the prompt's own system turns; with `None` these stay, and where there are
            none the chat template decides.

    Raises:
        ValueError: another number of images than the messages have places for.

    >>> [turn["role"] for turn in reward_messages("what is it?", 1, "a dog", "Judge the answer.")]
    ['system', 'user', 'assistant']
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system_prompt is not None:
        turns = [turn for turn in turns if turn["role"] != "system"]
        turns = [{"role": "system", "content": system_prompt}, *turns]
    waiting, placed = images, []
    for turn in turns:
        content = turn["content"]
        if turn["role"] == "user" and isinstance(content, str):
            content = [{"type": "image"}] * waiting + [{"type": "text", "text": content}]
            waiting = 0
        placed.append({"role": turn["role"], "content": content})
    parts = [part for turn in placed if isinstance(turn["content"], list) for part in turn["content"]]
    places = sum(part.get("type") == "image" for part in parts)
    if places != images:
        raise ValueError(f"number of images: expected {places} (places in the prompt), found {images}")
    return [*placed, {"role": "assistant", "content": response_parts(response)}]
