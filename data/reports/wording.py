"""Sentences of a data-quality report, as a person would put them, filled in with measured figures.

Each aspect has sentences for when something stands out and for when all is well. Sentences marked with a split are
used only there, so that a model tested on held-out reports also meets sentences it has not seen.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from data.reports.aspects import (
    ANSWERS,
    BLUR,
    EXACT_COPIES,
    EXPOSURE,
    NEAR_COPIES,
    RESOLUTION,
    SHAPE,
    TEXT_LENGTH,
    Aspect,
)

TRAIN, TEST, BOTH = "train", "test", "both"


@dataclass(frozen=True)
class Wording:
    """Sentences of one aspect; placeholders are filled from the figures that `quality_reports` gives it."""

    remarkable: tuple[tuple[str, str], ...]
    healthy: tuple[tuple[str, str], ...]


OPENINGS = (
    (BOTH, "The data set has {total} items."),
    (BOTH, "We looked at {total} items."),
    (TRAIN, "This report covers {total} items."),
    (TEST, "{total} items were looked at."),
)

VAGUE = Wording(
    remarkable=(
        (BOTH, "{count} of {total} items leave something to be desired."),
        (BOTH, "Some items are not as good as they should be."),
        (TRAIN, "{percent}% of the items have flaws of some kind."),
        (TEST, "{count} items have flaws of some kind."),
    ),
    healthy=((BOTH, "Nothing stands out."), (BOTH, "The items are good.")),
)
"""Says that something is wrong and not what: for reports whose reader must find out otherwise."""

WORDINGS: dict[Aspect, Wording] = {
    BLUR: Wording(
        remarkable=(
            (BOTH, "{of_images} blurry (blur up to {extreme:.2f})."),
            (BOTH, "Many images look blurry: {percent}% lie above the limit."),
            (TRAIN, "{percent}% are soft, with blur up to {extreme:.2f}."),
            (TEST, "{of_images} blurry and soft."),
        ),
        healthy=(
            (BOTH, "Images are sharp (median blur {median:.2f})."),
            (BOTH, "Focus is crisp, blur is {median:.2f}."),
            (TRAIN, "All images are in focus."),
            (TEST, "Images are crisp and sharp."),
        ),
    ),
    EXPOSURE: Wording(
        remarkable=(
            (BOTH, "{of_images} badly lit (brightness {minimum:.2f} to {extreme:.2f}, {blown}% blown out)."),
            (BOTH, "{percent}% are too dark or washed out."),
            (TRAIN, "Lighting is poor, {images_are} too dark or washed out."),
            (TEST, "{of_images} badly lit, dark or washed out."),
        ),
        healthy=(
            (BOTH, "Exposure is even (mean brightness {median:.2f})."),
            (BOTH, "Lighting is even, brightness is {median:.2f}."),
            (TRAIN, "Images are well exposed."),
            (TEST, "Images are well exposed, lighting is even."),
        ),
    ),
    RESOLUTION: Wording(
        remarkable=(
            (BOTH, "{of_images} too small (down to {minimum:.0f} pixels)."),
            (BOTH, "{percent}% are pixelated or tiny."),
            (TRAIN, "{images_are} tiny, the smallest with {minimum:.0f} pixels a side."),
            (TEST, "{of_images} too small, tiny or pixelated."),
        ),
        healthy=(
            (BOTH, "Images are large ({median:.0f} pixels)."),
            (BOTH, "Image sizes are ample, {minimum:.0f} pixels or more."),
            (TRAIN, "All images are large enough."),
            (TEST, "Images are large, sizes are ample."),
        ),
    ),
    SHAPE: Wording(
        remarkable=(
            (BOTH, "{of_images} long strips (aspect ratio up to {extreme:.1f})."),
            (BOTH, "{percent}% are padded to strips."),
            (TRAIN, "The aspect ratio reaches {extreme:.1f}, {images_are} strips."),
            (TEST, "{of_images} padded to long strips."),
        ),
        healthy=(
            (BOTH, "Shapes are regular (aspect ratio {median:.1f})."),
            (BOTH, "Images are nearly square."),
            (TRAIN, "The aspect ratio is regular."),
            (TEST, "Shapes are regular, nearly square."),
        ),
    ),
    EXACT_COPIES: Wording(
        remarkable=(
            (BOTH, "{items_are} copied exactly from others."),
            (BOTH, "{percent}% repeat earlier items, pixel by pixel."),
            (TRAIN, "{items_are} identical to earlier ones."),
            (TEST, "{items_are} identical, copied exactly."),
        ),
        healthy=(
            (BOTH, "All items are unique."),
            (BOTH, "Every item occurs once."),
            (TRAIN, "Items are unique."),
            (TEST, "All items are unique, each occurs once."),
        ),
    ),
    NEAR_COPIES: Wording(
        remarkable=(
            (BOTH, "{items_are} nearly copied from others, edited or compressed again."),
            (BOTH, "Some items look alike: {percent}% are retouched versions."),
            (TRAIN, "{items_are} almost alike."),
            (TEST, "{items_are} retouched or edited versions."),
        ),
        healthy=(
            (BOTH, "Items look distinct."),
            (BOTH, "Items differ clearly."),
            (TRAIN, "All items look different."),
            (TEST, "Items look distinct, they differ clearly."),
        ),
    ),
    TEXT_LENGTH: Wording(
        remarkable=(
            (BOTH, "{count} of {total} questions have an odd length ({minimum:.0f} to {extreme:.0f} words)."),
            (BOTH, "Question texts are cut or padded: {percent}% have {minimum:.0f} words or up to {extreme:.0f}."),
            (TRAIN, "{count} questions are cut or padded."),
            (TEST, "{count} of {total} questions are cut or have an odd length."),
        ),
        healthy=(
            (BOTH, "Question length is normal ({median:.0f} words)."),
            (BOTH, "Texts are complete."),
            (TRAIN, "All questions have a normal length."),
            (TEST, "Texts are complete, with a normal length."),
        ),
    ),
    ANSWERS: Wording(
        remarkable=(
            (BOTH, "{count} of {total} questions got contradicting answers (agreement {minimum:.2f})."),
            (BOTH, "Annotators disagree on {percent}% of the questions."),
            (TRAIN, "Agreement falls to {minimum:.2f}, annotators disagree."),
            (TEST, "Annotators disagree: {count} questions got contradicting answers."),
        ),
        healthy=(
            (BOTH, "Annotators concur (agreement {median:.2f})."),
            (BOTH, "Answers are consistent."),
            (TRAIN, "Annotators concur on every question."),
            (TEST, "Answers are consistent, annotators concur."),
        ),
    ),
}


def choose(rng: random.Random, sentences: tuple[tuple[str, str], ...], split: str) -> str:
    """One sentence allowed in this split; anything but the test split counts as training."""
    excluded = TRAIN if split == TEST else TEST
    return rng.choice([sentence for where, sentence in sentences if where != excluded])


def factor_sentence(counts: Mapping[str, int], total: int) -> str:
    """What a factor predictor found on the images of a report, as the report says it.

    Args:
        counts: name of a factor -> number of images that it applies to.
        total: number of images that were looked at.

    >>> factor_sentence({"blurry image": 2, "too dark": 1}, 8)
    'Predicted factors: blurry image (2 of 8), too dark (1 of 8).'
    """
    found = [f"{name} ({count} of {total})" for name, count in counts.items() if count]
    return f"Predicted factors: {', '.join(found) or 'none'}."
