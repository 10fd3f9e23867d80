"""What a reward model reads of conversations with images: tokens and pixels.

Responses to one prompt share its images: the vision tower sees them once. Their pixels are prepared once too, unless a
response has images of its own: then each conversation goes through the processor by itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from data.rows.messages import message_texts
from data.rows.responses import Response, response_images
from models.families.base import KnownFamily, different_images
from models.families.loading import image_reader, render, space_before_answers
from models.families.registry import family_of_processor
from models.reward.image_places import render_with_images
from models.reward.inputs import ResponseGroup, reward_messages
from models.shared_prefix.layout import common_prefix


def conversation_text(processor, messages: Sequence[dict[str, Any]]) -> str:
    """The conversation as the chat template writes it, up to the token that ends the response.

    That token is what the score is read from; the line break after it, which some templates write, is cut off.
    """
    text = render_with_images(processor, messages)
    end = processor.tokenizer.eos_token
    if end is not None and end in text:
        return text[: text.rindex(end) + len(end)]
    ended = text.rstrip()
    return ended if ended.endswith(tuple(special_tokens(processor.tokenizer).values())) else text


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that no text around them can change, by their ids."""
    return {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def response_start(processor, messages: Sequence[dict[str, Any]], text: str) -> int:
    """Number of characters of `text` before the response begins.

    Raises:
        ValueError: a chat template that writes the prompt differently when a response follows.
    """
    prompt = render(processor, messages[:-1], add_generation_prompt=True)
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
        input_ids, attention_mask (N, T), and the types of tokens (N, T) where the family has such; row_groups (N,),
        the group of each row; labels (N, T), if asked for, -100 but for the tokens of the labelled responses; and, if
        there are images, what the processor makes of the different ones, and image_index (places,), which of them
        stands at each place.

    Raises:
        ValueError: images and places in the prompt do not match, a text that holds a token for an image, or a labelled
            response with an image: language models write none.
        ImageError: an image that cannot be used.
    """
    images = [_opened(processor, group) for group in groups]
    texts: list[list[str]] = []
    starts: list[int | None] = []
    for number, group in enumerate(groups):
        texts.append([])
        for position, response in enumerate(group.responses):
            said = _without_space(processor, response)
            messages = reward_messages(group.prompt, len(group.images), said, system_prompt)
            text = _written(processor, messages)
            is_labelled = labelled is not None and labelled[number] == position
            if is_labelled and response_images(response):
                raise ValueError("lm_loss_weight: expected a best response of text alone, found one with an image")
            starts.append(response_start(processor, messages, text) if is_labelled else None)
            texts[number].append(text)
    rows, encoded = _tokenise(processor, texts, images)
    encoded["row_groups"] = torch.tensor([number for number, group in enumerate(texts) for _ in group])
    if labelled is not None:
        flat = [text for group in texts for text in group]
        rows["labels"] = list(_labels(processor, flat, starts, rows["input_ids"]))
    return encoded | _padded(rows, processor.tokenizer.pad_token_id, padding_side)


_Opened = tuple[list[Image.Image], list[list[Image.Image]]]
"""The images of a prompt, and those of each of its responses."""


def _opened(processor: Any, group: ResponseGroup) -> _Opened:
    reader = image_reader(processor)
    of_responses = [[reader.open(image) for image in response_images(response)] for response in group.responses]
    return [reader.open(image) for image in group.images], of_responses


def _without_space(processor: Any, response: Response) -> Response:
    """A response without the white space that the template writes before it again."""
    return response.removeprefix(space_before_answers(processor)) if isinstance(response, str) else response


_TYPES = ("token_type_ids", "mm_token_type_ids")
"""What families call the types of tokens, 0 for text."""


def _written(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as the chat template writes it.

    Raises:
        ValueError: one of its texts holds a token for an image.
    """
    forbidden = family_of_processor(processor).forbidden_tokens(processor)
    for text in message_texts(messages):
        found = next((token for token in forbidden if token in text), None)
        if found is not None:
            raise ValueError(f"a text contains {found}, which promises an image: {text!r:.200}")
    return conversation_text(processor, messages)


@dataclass(frozen=True)
class _Unit:
    """Conversations with the same images, which the processor sees once, in the first of them.

    Attributes:
        texts: as the chat template writes them.
        ids: their tokens; each image has the one place that the chat template gives it.
        behind: so many tokens are the same in all; images stand among them alone, and what is put in their places
            changes no later token.
    """

    images: Sequence[Image.Image]
    texts: Sequence[str]
    ids: Sequence[list[int]]
    behind: int

    def rows(self, processed: dict[str, list[int]]) -> Iterator[dict[str, list[int]]]:
        """Tokens and their types of each conversation.

        Args:
            processed: the same of the first one, with its images.
        """
        rest = self.ids[0][self.behind :]
        end = len(processed["input_ids"]) - len(rest)
        if processed["input_ids"][end:] != rest:
            raise ValueError(f"the processor changes the text behind the images: {self.texts[0]!r:.200}")
        for ids in self.ids:
            after = ids[self.behind :]
            yield {
                name: values[:end] + (after if name == "input_ids" else [0] * len(after))
                for name, values in processed.items()
            }


def _units(processor: Any, images: _Opened, texts: Sequence[str], ids: Sequence[list[int]]) -> list[_Unit]:
    """The conversations of a group: together, or each by itself where responses have images, where nothing divides
    images from what differs, or where it is not known how features of images are laid out."""
    of_prompt, of_responses = images
    alone = [
        _Unit([*of_prompt, *own], [text], [one], len(one) if of_prompt or own else 0)
        for own, text, one in zip(of_responses, texts, ids, strict=True)
    ]
    if any(of_responses):
        return alone
    if not of_prompt:
        return [_Unit([], texts, ids, 0)]
    family, tokenizer = family_of_processor(processor), processor.tokenizer
    common = ids[0][: common_prefix([np.array(one) for one in ids])]
    of_images = set(tokenizer.convert_tokens_to_ids(family.forbidden_tokens(processor)))
    special = special_tokens(tokenizer).keys() - of_images
    behind = next((place for place in reversed(range(len(common))) if common[place] in special), 0)
    if behind and of_images.isdisjoint(common[behind:]) and isinstance(family, KnownFamily):
        return [_Unit(of_prompt, texts, ids, behind)]
    return alone


def _process(processor: Any, units: Sequence[_Unit]) -> tuple[list[dict[str, list[int]]], dict[str, torch.Tensor]]:
    """Tokens and their types of the first conversation of each unit; and what is made of the images."""
    made = processor(
        text=[unit.texts[0] for unit in units],
        images=[list(unit.images) for unit in units],
        add_special_tokens=False,  # the chat template has written them
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    lengths = made.pop("attention_mask").sum(dim=1).tolist()
    of_tokens = {name: made.pop(name).tolist() for name in ("input_ids", *_TYPES) if name in made}
    rows = [
        {name: values[number][:length] for name, values in of_tokens.items()} for number, length in enumerate(lengths)
    ]
    return rows, dict(made)


@lru_cache(maxsize=8)
def _types(processor: Any) -> tuple[str, ...]:
    """Which types of tokens the family has."""
    return tuple(name for name in _TYPES if name in processor(text=["x"]))


def _counted(
    processor: Any, units: Sequence[_Unit], processed: Sequence[dict[str, list[int]]], encoded: dict[str, torch.Tensor]
) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """For each unit the numbers of its images, or of its tiles where the family cuts images into such; and the
    different ones of these, each with features of its own."""
    family = family_of_processor(processor)
    counts = [len(unit.images) for unit in units]
    if not isinstance(family, KnownFamily):
        return _in_turn(range(sum(counts)), counts), encoded
    found = family.split(encoded)
    if len(found) != sum(counts):
        tokens = [row["input_ids"].count(processor.image_token_id) for row in processed]
        counts = [len(found) * one // sum(tokens) for one in tokens]  # of all tiles equally many
    numbers, different = different_images(found)
    return _in_turn(numbers, counts), family.join(different)


def _in_turn(numbers: Iterable[int], counts: Sequence[int]) -> list[list[int]]:
    """Lists of the next so many numbers each."""
    left = iter(numbers)
    return [list(islice(left, count)) for count in counts]


def _tokenise(
    processor: Any, texts: Sequence[Sequence[str]], images: Sequence[_Opened]
) -> tuple[dict[str, list[list[int]]], dict[str, torch.Tensor]]:
    """Tokens and their types of each group's conversations; and what is made of the images, with `image_index`."""
    flat = processor.tokenizer([text for group in texts for text in group], add_special_tokens=False)["input_ids"]
    plain = iter(flat)
    units = [
        unit
        for pictures, group in zip(images, texts, strict=True)
        for unit in _units(processor, pictures, group, [next(plain) for _ in group])
    ]
    with_images = [unit for unit in units if unit.images]
    processed, encoded = _process(processor, with_images) if with_images else ([], {})
    numbers, encoded = _counted(processor, with_images, processed, encoded) if with_images else ([], {})
    seen_by_it = zip(processed, numbers, strict=True)
    rows: dict[str, list[list[int]]] = {name: [] for name in ("input_ids", *_types(processor))}
    index = list[int]()
    for unit in units:
        first, own = next(seen_by_it) if unit.images else (dict.fromkeys(rows, unit.ids[0]), [])
        for row in unit.rows(first):
            for name, values in row.items():
                rows[name].append(values)
            index += own
    if index:
        encoded["image_index"] = torch.tensor(index)
    return rows, encoded


def _labels(
    processor: Any, texts: Sequence[str], starts: Sequence[int | None], ids: Sequence[list[int]]
) -> Iterator[list[int]]:
    """Labels of each conversation: its tokens from the response on, or none where that has no start."""
    for text, start, row in zip(texts, starts, ids, strict=True):
        response = "" if start is None else text[start:]
        learned = len(processor.tokenizer(response, add_special_tokens=False)["input_ids"]) if response else 0
        yield [-100] * (len(row) - learned) + row[len(row) - learned :]


def _padded(rows: dict[str, list[list[int]]], pad_token: int, side: str) -> dict[str, torch.Tensor]:
    rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
    fill = {"input_ids": pad_token, "labels": -100}
    return {
        key: pad_sequence(list(map(torch.tensor, values)), True, fill.get(key, 0), side)
        for key, values in rows.items()
    }
