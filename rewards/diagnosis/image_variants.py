"""Prompts whose images are taken away in three ways: each says what the accuracy with the images comes from.

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
        among those without images if nothing is left of a turn of its prompt.

    Raises:
        ImageError: an image that cannot be read.
    """
    without = {row: _without_images(request) for row, request in requests.items()}
    return {
        BLANK: {row: replace(request, images=_blank_images(request.images)) for row, request in requests.items()},
        OTHER: {
            row: replace(requests[row], images=images)
            for row, images in other_images({row: one.images for row, one in requests.items()}, seed).items()
        },
        WITHOUT: {row: request for row, request in without.items() if request is not None},
    }


def _blank_images(images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    return [{"bytes": _grey_picture(*image_size(image)), "path": None} for image in images]


@lru_cache(maxsize=1024)
def _grey_picture(width: int, height: int) -> bytes:
    """A PNG file: a thousandth of the memory of its pixels."""
    file = io.BytesIO()
    Image.new("L", (width, height), GREY).save(file, "PNG")
    return file.getvalue()


def _without_images(request: ScoreRequest) -> ScoreRequest | None:
    if isinstance(request.prompt, str):
        return replace(request, images=())
    turns = [{**turn, "content": _texts_of(turn["content"])} for turn in request.prompt]
    left = all(turn["content"] or not before["content"] for turn, before in zip(turns, request.prompt, strict=True))
    return replace(request, prompt=turns, images=()) if left else None


def _texts_of(content: str | Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
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
