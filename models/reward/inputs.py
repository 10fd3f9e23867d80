"""What a reward model reads: a conversation that ends with the response to be scored, and the images of its prompt.

Responses to one prompt share its images: their pixels are prepared once, and the vision tower sees them once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from torch.nn.utils.rnn import pad_sequence

from data.io.images import ImageSource
from data.rows.messages import parse_prompt, place_images, texts_of
from models.families.loading import image_reader

IMAGE_TOKEN = "<|image_pad|>"

Prompt = str | Sequence[dict[str, Any]]
"""A question, or chat messages without the response."""


@dataclass(frozen=True)
class ResponseGroup:
    """One prompt with the responses to score.

    Attributes:
        prompt: question or chat messages.
        images: of the prompt, in order; placed before its first user text, if the messages do not place them.
        responses: texts.
    """

    prompt: Prompt
    images: Sequence[ImageSource]
    responses: Sequence[str]


def read_requests(
    prompts: Any, images: Any, responses: Any
) -> tuple[list[Prompt], list[list[ImageSource]], list[str]]:
    """Prompts with places for their images, the images of each, and responses as texts, whatever form they came in.

    A prompt is a question or chat messages, whose parts may hold their images; the images of one are a list, one image
    alone, or `None`; a response is a text, or chat messages of which the last one counts.

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
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        raise ValueError(f"prompts[{number}]: {'; '.join(problems)}") from error
    except PydanticCustomError as error:
        raise ValueError(f"prompts[{number}]: {error.message()}") from error


def _read_response(number: int, response: Any) -> str:
    if isinstance(response, str):
        return response
    if isinstance(response, list | tuple) and response and all(isinstance(turn, dict) for turn in response):
        content = response[-1].get("content")
        texts = [part.get("type", "text") for part in content] if isinstance(content, list) else []
        if isinstance(content, str | list) and all(kind == "text" for kind in texts):
            return "".join(texts_of(content))
    expected = "expected a text, or chat messages that end with it; a prompt with several responses is given for each"
    raise TypeError(f"responses[{number}]: {expected}; found {response!r:.80}")


def reward_messages(prompt: Prompt, images: int, response: str, system_prompt: str | None) -> list[dict[str, Any]]:
    """The conversation that is scored.

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
    return [*placed, {"role": "assistant", "content": response}]


def conversation_text(processor, messages: Sequence[dict[str, Any]]) -> str:
    """The conversation as the chat template writes it, up to the token that ends the response.

    That token is what the score is read from; the line break after it, which some templates write, is cut off.
    """
    text = processor.apply_chat_template(messages, tokenize=False)
    end = processor.tokenizer.eos_token
    return text[: text.rindex(end) + len(end)] if end is not None and end in text else text


def response_start(processor, messages: Sequence[dict[str, Any]], text: str) -> int:
    """Number of characters of `text` before the response begins.

    Raises:
        ValueError: a chat template that writes the prompt differently when a response follows.
    """
    prompt = processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    if not text.startswith(prompt):
        raise ValueError("the chat template writes a prompt differently when a response follows it")
    return len(prompt)


def encode_groups(
    processor,
    groups: Sequence[ResponseGroup],
    system_prompt: str | None = None,
    labelled: Sequence[int] | None = None,
    padding_side: str = "right",
) -> dict[str, torch.Tensor]:
    """Model inputs of all responses, group after group.

    Args:
        processor: of the model, with its pixel bounds.
        labelled: for each group, which of its responses gets language-model labels; by default none has labels.

    Returns:
        input_ids, attention_mask, mm_token_type_ids (N, T); row_groups (N,), the group of each row; labels (N, T), if
        asked for, -100 but for the tokens of the labelled responses; and, if there are images, pixel_values (patches,
        width) and image_grid_thw (images, 3) of the different images, and image_index (places,), which of them stands
        at each place.

    Raises:
        ValueError: images and places in the prompt do not match, or a text that holds a token for an image.
        ImageError: an image that cannot be used.
    """
    bounds = image_reader(processor)
    texts, starts, index, pictures, group_of_row = [], [], [], [], []
    for number, group in enumerate(groups):
        for position, response in enumerate(group.responses):
            messages = reward_messages(group.prompt, len(group.images), response, system_prompt)
            text = conversation_text(processor, messages)
            if text.count(IMAGE_TOKEN) != len(group.images):
                raise ValueError(f"a text contains {IMAGE_TOKEN}, which promises an image: {text!r:.200}")
            is_labelled = labelled is not None and labelled[number] == position
            starts.append(response_start(processor, messages, text) if is_labelled else None)
            index.extend(range(len(pictures), len(pictures) + len(group.images)))
            texts.append(text)
            group_of_row.append(number)
        pictures += [bounds.open(image) for image in group.images]
    encoded: dict[str, torch.Tensor] = {}
    counts: list[int] = []
    if pictures:
        encoded |= dict(processor.image_processor(images=pictures, return_tensors="pt"))
        counts = (encoded["image_grid_thw"].prod(dim=1) // processor.image_processor.merge_size**2).tolist()
        encoded["image_index"] = torch.tensor(index)
    encoded["row_groups"] = torch.tensor(group_of_row)
    encoded |= _tokenise(processor, texts, starts if labelled is not None else None, [counts[one] for one in index])
    return _padded(encoded, processor.tokenizer.pad_token_id, padding_side)


def _tokenise(
    processor, texts: Sequence[str], starts: Sequence[int | None] | None, counts: Sequence[int]
) -> dict[str, list[list[int]]]:
    """Token ids of texts whose image tokens are repeated `counts` times, place after place."""
    remaining = iter(counts)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "mm_token_type_ids": []}
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if starts is not None:
        rows["labels"] = []
    for number, text in enumerate(texts):
        pieces = text.split(IMAGE_TOKEN)
        expanded = pieces[0] + "".join(IMAGE_TOKEN * next(remaining) + piece for piece in pieces[1:])
        ids = processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        rows["input_ids"].append(ids)
        rows["mm_token_type_ids"].append([int(token == image_token) for token in ids])
        if starts is not None:
            after = 0 if starts[number] is None else len(text) - starts[number]
            tail = expanded[len(expanded) - after :]
            learned = len(processor.tokenizer(tail, add_special_tokens=False)["input_ids"]) if after else 0
            rows["labels"].append([-100] * (len(ids) - learned) + ids[len(ids) - learned :])
    return rows


def _padded(encoded: dict[str, Any], pad_token: int, side: str) -> dict[str, torch.Tensor]:
    rows = {key: value for key, value in encoded.items() if isinstance(value, list)}
    rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
    fill = {"input_ids": pad_token, "labels": -100}
    padded = {
        key: pad_sequence(list(map(torch.tensor, values)), True, fill.get(key, 0), side)
        for key, values in rows.items()
    }
    return {key: value for key, value in encoded.items() if not isinstance(value, list)} | padded
