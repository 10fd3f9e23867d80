"""Rows whose images are taken away in three ways: each says what the accuracy with the images comes from.

A blank image leaves the prompt as long as it was; another row's image looks like the data, and is false of the
question; without images there is the text alone.
"""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from PIL import Image

from data.io.digests import image_digest
from data.io.images import ImageSource, image_size
from data.rows.messages import texts_of
from data.rows.responses import images_by_field, map_images
from rewards.scoring.model_scores import ScoreRequest

WITH, BLANK, OTHER, WITHOUT = "with", "blank", "other", "without"
GREY = 128


def image_variants(requests: Mapping[int, ScoreRequest], seed: int) -> dict[str, dict[int, ScoreRequest]]:
    """The same requests with blank images of equal size, with those of other rows, and without images.

    Args:
        requests: by their rows, each with at least one image.
        seed: of the other rows' images.

    Returns:
        variant -> row -> request. A row is missing among those with other images if all rows show the same ones, and
        among those without images if nothing is left of a turn or of a response.

    Raises:
        ImageError: an image that cannot be read.
    """
    images = {row: images_of(request) for row, request in requests.items()}
    blank = {row: [_blank(image) for image in of_row] for row, of_row in images.items()}
    without = {row: _without_images(request) for row, request in requests.items()}
    return {
        BLANK: {row: _with_images(requests[row], of_row) for row, of_row in blank.items()},
        OTHER: {row: _with_images(requests[row], of_row) for row, of_row in other_images(images, seed).items()},
        WITHOUT: {row: request for row, request in without.items() if request is not None},
    }


def images_of(request: ScoreRequest) -> list[ImageSource]:
    """All images: those of the prompt, then those of each response."""
    return [image for _, image in images_by_field(request.images, request.responses)]


def _with_images(request: ScoreRequest, images: Sequence[ImageSource]) -> ScoreRequest:
    """The same with other images in the places of its own."""
    left = iter(images)
    of_prompt = [next(left) for _ in request.images]
    responses = [map_images(response, lambda _: next(left)) for response in request.responses]
    return replace(request, images=of_prompt, responses=responses)


def _blank(image: ImageSource) -> dict[str, Any]:
    return {"bytes": _grey_picture(*image_size(image)), "path": None}


@lru_cache(maxsize=1024)
def _grey_picture(width: int, height: int) -> bytes:
    """A PNG file: a thousandth of the memory of its pixels."""
    file = io.BytesIO()
    Image.new("L", (width, height), GREY).save(file, "PNG")
    return file.getvalue()


def _without_images(request: ScoreRequest) -> ScoreRequest | None:
    prompt = request.prompt
    if not isinstance(prompt, str):
        prompt = [{**turn, "content": _without_parts(turn["content"])} for turn in prompt]
    responses = ["".join(texts_of(response)) for response in request.responses]
    spoken = prompt if isinstance(prompt, str) else [turn["content"] for turn in prompt if turn["role"] != "system"]
    return replace(request, prompt=prompt, images=(), responses=responses) if all(spoken) and all(responses) else None


def _without_parts(content: str | Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [part for part in content if part["type"] != "image"]


def other_images(images: Mapping[int, Sequence[ImageSource]], seed: int) -> dict[int, list[ImageSource]]:
    """For each row, as many images of other rows, none of which shows the same picture as any of its own.

    Each image goes to one row, as long as no picture stands in more than half of the places. Pictures are compared as
    they are read, whatever their files are called. A row that all pictures stand in is missing.

    >>> red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    >>> [found[0].getpixel((0, 0)) for found in other_images({0: [red], 1: [blue]}, seed=0).values()]
    [(0, 0, 255), (255, 0, 0)]
    """
    places = [(row, image) for row, of_row in images.items() for image in of_row]
    pictures = [image_digest(image) for _, image in places]
    own: dict[int, set[str]] = {row: set() for row in images}
    for (row, _), picture in zip(places, pictures, strict=True):
        own[row].add(picture)
    order = _exchanged([own[row] for row, _ in places], pictures, seed)
    given: dict[int, list[ImageSource]] = {row: [] for row in images}
    for (row, _), place in zip(places, order, strict=True):
        if place is not None:
            given[row].append(places[place][1])
    return {row: found for row, found in given.items() if len(found) == len(images[row])}


def _exchanged(forbidden: Sequence[set[str]], pictures: Sequence[str], seed: int) -> list[int | None]:
    """For each place, the place whose picture it gets: a random order, in which places that get one of the pictures
    forbidden to them swap theirs.

    Where nobody can swap, a picture is given twice; `None` if all are forbidden.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(pictures)), len(pictures))
    for place, mine in enumerate(forbidden):
        if pictures[order[place]] in mine:
            able = (
                other
                for other, theirs in enumerate(forbidden)
                if pictures[order[other]] not in mine and pictures[order[place]] not in theirs
            )
            other = next(able, place)
            order[place], order[other] = order[other], order[place]
    return [
        given if pictures[given] not in mine else _any_allowed(mine, pictures, rng)
        for given, mine in zip(order, forbidden, strict=True)
    ]


def _any_allowed(forbidden: set[str], pictures: Sequence[str], rng: random.Random) -> int | None:
    allowed = [place for place, picture in enumerate(pictures) if picture not in forbidden]
    return rng.choice(allowed) if allowed else None
