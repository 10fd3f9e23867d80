"""Checks of images: as many as the rows have, of the same patches on both sides, and as many tokens as patches."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from trainers.diagnosis import causes
from trainers.diagnosis.findings import Finding, not_told, wrong
from trainers.diagnosis.prompts import image_pad
from trainers.diagnosis.rollout import Observed, Sampled

PIXEL_LIMIT = 1e-5
"""Difference of two processors' values, which have a deviation of about 1; bfloat16 alone is far above it."""

NO_PATCHES = "the model's processor makes no table of patches, by which images are told apart here"


def in_patches(observed: Observed) -> bool:
    """Whether the images of the update, if it has any, are in one table of patches."""
    return "pixel_values" not in observed.batch or "image_grid_thw" in observed.batch


def check_images(observed: Observed, processor: Any) -> Iterator[Finding]:
    """Images of rows, sampler and update beside each other."""
    wanted = [len(row.get("images") or []) for row in observed.rows]
    if not any(wanted):
        yield Finding("images", "no row has any", "0")
        return
    if not in_patches(observed):
        yield not_told("images of both sides", NO_PATCHES)
        return
    own = observed.images()
    yield check_count("images of the update", [len(grids) for grids, _ in own], wanted)
    sampled = [one.grids for one in observed.sampled]
    if any(grids is None for grids in sampled):
        yield not_told("images of the sampler", "the sampler does not tell the grids of its images")
    else:
        yield check_count("images of the sampler", [len(grids or []) for grids in sampled], wanted)
        yield check_grids(observed, own)
        yield check_pixels(observed, own)
    yield check_image_tokens(observed, own, processor)


def check_count(check: str, found: list[int], wanted: list[int]) -> Finding:
    """Each row has all its images."""
    lost = [number for number, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1]]
    said = f"{sum(found)} of {sum(wanted)}"
    if lost:
        return wrong(check, f"{said}; {len(lost)} of {len(wanted)} rows lack some", "all", causes.DROPPED_IMAGE)
    return Finding(check, said, "all")


def check_grids(observed: Observed, own: list) -> Finding:
    """Both sides resize alike."""
    pairs = [(one.grids, grids) for one, (grids, _) in zip(observed.sampled, own, strict=True)]
    pairs = [pair for pair in pairs if len(pair[0]) == len(pair[1])]  # a lost image is told above
    unequal = [pair for pair in pairs if [tuple(grid) for grid in pair[0]] != pair[1]]
    check = "grids of sampler and update"
    if unequal:
        first = f"{_shown(unequal[0][0])} and {_shown(unequal[0][1])} patches"
        found = f"{len(unequal)} of {len(pairs)} rows differ, the first with {first}"
        same = all(sorted(map(tuple, told)) == sorted(grids) for told, grids in unequal)
        return wrong(check, found, "all equal", causes.IMAGE_ORDER if same else causes.PIXEL_BOUNDS)
    return Finding(check, f"equal in {len(pairs)} of {len(pairs)} rows", "all equal")


def _shown(grids: list) -> str:
    return ", ".join("x".join(map(str, grid[1:])) for grid in grids)


def check_pixels(observed: Observed, own: list) -> Finding:
    """Both sides see the same values, where their grids agree."""
    check = "pixels of sampler and update"
    worst, compared = 0.0, 0
    for one, (_, pixels) in zip(observed.sampled, own, strict=True):
        if one.pixels is not None and pixels is not None and one.pixels.shape == pixels.shape:
            worst = max(worst, (one.pixels.float().cpu() - pixels.float().cpu()).abs().max().item())
            compared += 1
    if not compared:
        return not_told(check, "the sampler does not tell its pixels, or has none of the same size")
    limit = f"at most {PIXEL_LIMIT:g}"
    if not worst <= PIXEL_LIMIT:
        cause = causes.IMAGE_ORDER if all(map(_permuted, observed.sampled, own)) else causes.PIXELS
        return wrong(check, f"differ by up to {worst:.3g}", limit, cause)
    return Finding(check, f"differ by at most {worst:.2g} in {compared} rows", limit)


def _permuted(one: Sampled, own: tuple[list, torch.Tensor | None]) -> bool:
    """Whether sampler and update have the same images, in whatever order."""
    grids, pixels = own
    if one.pixels is None or pixels is None or one.grids is None:
        return one.pixels is None and pixels is None
    sides = [_images_of(one.grids, one.pixels), _images_of(grids, pixels)]
    if len(sides[0]) != len(sides[1]):
        return False
    left = sides[1]
    for image in sides[0]:
        match = next((number for number, other in enumerate(left) if _alike(image, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _images_of(grids: list, pixels: torch.Tensor) -> list[torch.Tensor]:
    return list(pixels.float().cpu().split([math.prod(grid) for grid in grids]))


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and (one - other).abs().max().item() <= PIXEL_LIMIT


def check_image_tokens(observed: Observed, own: list, processor: Any) -> Finding:
    """A prompt has as many image tokens as its images have merged patches."""
    check = "image tokens and patches of the update"
    pad = image_pad(processor)
    merge = getattr(processor.image_processor, "merge_size", 1) ** 2
    wrong_rows = []
    for number, (grids, _) in enumerate(own):
        tokens = observed.prompt_ids(number).count(pad)
        patches = int(sum(torch.tensor(grid).prod().item() for grid in grids)) // merge
        if tokens != patches:
            wrong_rows.append((tokens, patches))
    if wrong_rows:
        tokens, patches = wrong_rows[0]
        found = f"{len(wrong_rows)} of {len(own)} rows differ, the first with {tokens} tokens for {patches} patches"
        return wrong(check, found, "equal", causes.IMAGE_TOKENS if patches else causes.DROPPED_IMAGE)
    return Finding(check, f"equal in {len(own)} of {len(own)} rows", "equal")
