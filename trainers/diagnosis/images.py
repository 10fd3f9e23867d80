"""Checks of images: all of them there, the same on both sides and as the processor makes them, and as many tokens.

Families that cut images into tiles, each with features of its own, have their tiles compared: what is said of images
here holds for those."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

from models.families.base import ImageTensors, KnownFamily
from models.families.registry import family_of, known_family_of
from trainers.diagnosis import causes
from trainers.diagnosis.causes import Cause
from trainers.diagnosis.findings import Finding, not_told, wrong
from trainers.diagnosis.prompts import expected_inputs
from trainers.diagnosis.rollout import Observed, image_tokens_in

PIXEL_LIMIT = 1e-5
"""Difference of two processors' values, which have a deviation of about 1; bfloat16 alone is far above it."""
PIXELS = "pixel_values"

Rows: TypeAlias = list[list[ImageTensors]]
"""The images of each row."""


def check_images(observed: Observed, processor: Any, has_sampler: bool = True, **options: Any) -> Iterator[Finding]:
    """Images of processor, update and, if there is one, sampler beside each other.

    Args:
        options: of the chat template.
    """
    pictures = [len(row.get("images") or []) for row in observed.rows]
    if not any(pictures):
        yield Finding("images", "no row has any", "0")
        return
    if observed.config is None or not isinstance(family_of(observed.config), KnownFamily):
        yield not_told("images of both sides", "it is not known how models of this type lay images out")
        return
    wanted = as_processor_reads(observed, processor, **options)
    try:
        own = observed.images()
    except ValueError as error:
        count, all_of_them = len(known_family_of(observed.config).split(observed.batch)), sum(map(len, wanted))
        cause = causes.DROPPED_IMAGE if count < all_of_them else causes.IMAGE_TOKENS
        yield wrong("images of the update", f"{count} of {all_of_them}; {error}", "all", cause)
        return
    yield check_count("images of the update", own, wanted, pictures)
    yield from compare("update and processor", own, wanted)
    if has_sampler:
        yield from _check_sampler(observed, own, wanted, pictures)
    yield check_image_tokens(observed, own)


def _check_sampler(observed: Observed, own: Rows, wanted: Rows, pictures: list[int]) -> Iterator[Finding]:
    sampled = [one.images for one in observed.sampled if one.images is not None]
    if len(sampled) < len(observed.sampled):
        yield not_told("images of the sampler", "the sampler does not tell how it reads its images")
        return
    yield check_count("images of the sampler", sampled, wanted, pictures)
    yield from compare("sampler and update", sampled, own)


def as_processor_reads(observed: Observed, processor: Any, **options: Any) -> Rows:
    """What the model's own processor makes of the images of each row by itself."""
    family, made = known_family_of(observed.config), dict[int, list[ImageTensors]]()
    for row in observed.rows:
        if id(row) not in made:  # a row stands there once for each of its completions
            has_images = bool(row.get("images"))
            made[id(row)] = family.split(expected_inputs(processor, row, **options)) if has_images else []
    return [made[id(row)] for row in observed.rows]


def check_count(check: str, found: Rows, wanted: Rows, pictures: Sequence[int]) -> Finding:
    """Each row has as many images as the processor makes of its pictures.

    Args:
        pictures: of each row; one may have several tiles.
    """
    said = f"{sum(map(len, found))} of {sum(map(len, wanted))}"
    unequal = [number for number, pair in enumerate(zip(found, wanted, strict=True)) if len(pair[0]) != len(pair[1])]
    if not unequal:
        return Finding(check, said, "all")
    cause = causes.DROPPED_IMAGE
    if same_images(_flat(found), _flat(wanted)):
        cause = causes.OTHER_ROW
    elif all(_cut_otherwise(found[number], wanted[number], pictures[number]) for number in unequal):
        cause = causes.PIXEL_BOUNDS
    return wrong(check, f"{said}; {len(unequal)} of {len(wanted)} rows have others", "all", cause)


def _cut_otherwise(found: list[ImageTensors], wanted: list[ImageTensors], pictures: int) -> bool:
    """Whether a row has all its pictures, in other tiles."""
    return len(wanted) > pictures and bool(found) and (pictures == 1 or _matched(found, wanted) < len(found))


def compare(sides: str, left: Rows, right: Rows) -> Iterator[Finding]:
    """Whether rows with as many images on both sides have the same.

    Args:
        sides: names of both.
    """
    pairs = [pair for pair in zip(left, right, strict=True) if len(pair[0]) == len(pair[1])]  # others are told above
    check, limit = f"sizes of images, {sides}", "all equal"
    unequal = [pair for pair in pairs if not all(map(_laid_out_alike, *pair))]
    if unequal:
        first = " and ".join(", ".join(map(_size_of, side)) for side in unequal[0])
        found = f"{len(unequal)} of {len(pairs)} rows differ, the first with {first}"
        yield wrong(check, found, limit, _why_unequal(pairs, unequal, causes.PIXEL_BOUNDS))
    else:
        yield Finding(check, f"equal in {len(pairs)} of {len(pairs)} rows", limit)
    yield check_pixels(f"pixels of {sides}", pairs)


def check_pixels(check: str, pairs: list[tuple[list[ImageTensors], list[ImageTensors]]]) -> Finding:
    """Both sides see the same values, where their sizes agree."""
    equal = [pair for pair in pairs if all(map(_laid_out_alike, *pair))]
    told = [pair for pair in equal if pair[0] and all(PIXELS in image for side in pair for image in side)]
    if not told:
        return not_told(check, "a side does not tell its pixels, or has none of the same size")
    limit, apart = f"at most {PIXEL_LIMIT:g}", [max(map(_difference, *pair)) for pair in told]
    unequal = [pair for pair, difference in zip(told, apart, strict=True) if not difference <= PIXEL_LIMIT]
    if unequal:
        found = f"differ by up to {max(apart):.3g}, in {len(unequal)} of {len(told)} rows"
        return wrong(check, found, limit, _why_unequal(pairs, unequal, causes.PIXELS))
    return Finding(check, f"differ by at most {max(apart):.2g} in {len(told)} rows", limit)


def _why_unequal(pairs: Sequence[tuple], unequal: Sequence[tuple], otherwise: Cause) -> Cause:
    """Images in another order, within a row or between rows, or others.

    Args:
        pairs: images of both sides, of all rows; unequal: of those that differ.
    """
    if all(same_images(*pair) for pair in unequal):
        return causes.IMAGE_ORDER
    left, right = (_flat(side) for side in zip(*pairs, strict=True))
    return causes.OTHER_ROW if same_images(left, right) else otherwise


def check_image_tokens(observed: Observed, own: Rows) -> Finding:
    """A prompt has as many image tokens as its images."""
    check, config = "image tokens of the update", observed.config
    family, wrong_rows = known_family_of(config), []
    for number, images in enumerate(own):
        tokens = image_tokens_in(config, observed.prompt_ids(number))
        expected = sum(family.visual_tokens(config, image) for image in images)
        if tokens != expected:
            wrong_rows.append((tokens, expected))
    if wrong_rows:
        tokens, expected = wrong_rows[0]
        found = f"{len(wrong_rows)} of {len(own)} rows differ, the first with {tokens} tokens for images of {expected}"
        return wrong(check, found, "equal", causes.IMAGE_TOKENS if expected else causes.DROPPED_IMAGE)
    return Finding(check, f"equal in {len(own)} of {len(own)} rows", "equal")


# -- two images -------------------------------------------------------------------------------------------------------


def same_images(some: Sequence[ImageTensors], others: Sequence[ImageTensors]) -> bool:
    """Whether both are the same images, in whatever order."""
    return len(some) == len(others) == _matched(some, others)


def _matched(some: Sequence[ImageTensors], others: Sequence[ImageTensors]) -> int:
    """How many of some images are among others, of which each counts once."""
    left = list(others)
    for image in some:
        match = next((place for place, other in enumerate(left) if _alike(image, other)), None)
        if match is not None:
            left.pop(match)
    return len(others) - len(left)


def _alike(one: ImageTensors, other: ImageTensors) -> bool:
    return _laid_out_alike(one, other) and _difference(one, other) <= PIXEL_LIMIT


def _laid_out_alike(one: ImageTensors, other: ImageTensors) -> bool:
    """Whether pixels have one shape, and what is said of their places is the same; of what both sides tell."""
    return all(
        one[name].shape == other[name].shape and (name == PIXELS or torch.equal(one[name].cpu(), other[name].cpu()))
        for name in one.keys() & other.keys()
    )


def _difference(one: ImageTensors, other: ImageTensors) -> float:
    """The largest, of the pixels of two images of one shape; 0 where they are not told."""
    if PIXELS not in one or PIXELS not in other:
        return 0.0
    return (one[PIXELS].float().cpu() - other[PIXELS].float().cpu()).abs().max().item()


def _size_of(image: ImageTensors) -> str:
    """Rows and columns of patches where there is a grid of them, else the shape of the pixels."""
    if "image_grid_thw" in image:
        return "x".join(map(str, image["image_grid_thw"].tolist()[1:])) + " patches"
    if "image_sizes" in image:
        return "x".join(map(str, image["image_sizes"].tolist())) + " pixels"
    return "x".join(map(str, image[PIXELS].shape))


def _flat(rows: Sequence[list[ImageTensors]]) -> list[ImageTensors]:
    return [image for row in rows for image in row]
