"""Sentences of a data-quality report, as a person would put them, filled in with measured figures.

Each aspect has sentences for when something stands out and for when all is well. Sentences marked with a split are
used only there, so that a model tested on held-out reports also meets sentences it has not seen.
"""

import random
from dataclasses import dataclass

from data.aspects import ANSWERS, BLUR, EXACT_COPIES, EXPOSURE, NEAR_COPIES, RESOLUTION, SHAPE, TEXT_LENGTH, Aspect

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

WORDINGS: dict[Aspect, Wording] = {
    BLUR: Wording(
        remarkable=(
            (BOTH, "{of_images} blurry (blur up to {extreme:.2f})."),
            (BOTH, "Many images look blurry: median blur {median:.2f}, {percent}% above the limit."),
            (TRAIN, "Focus is a problem, {percent}% of the images are soft with blur up to {extreme:.2f}."),
            (TEST, "Blurry images are a problem: {count} of {total} are soft."),
        ),
        healthy=(
            (BOTH, "Images are sharp (median blur {median:.2f})."),
            (BOTH, "Focus is fine, blur is {median:.2f}."),
            (TRAIN, "No image is soft, blur stays below {extreme:.2f}."),
            (TEST, "Focus is good and images are sharp."),
        ),
    ),
    EXPOSURE: Wording(
        remarkable=(
            (BOTH, "{of_images} badly exposed (brightness {minimum:.2f} to {extreme:.2f}, up to {blown}% blown out)."),
            (BOTH, "Exposure is off: {percent}% are too dark or washed out."),
            (TRAIN, "Lighting is a problem, {images_are} too dark or too bright."),
            (TEST, "Lighting is off: {percent}% are badly exposed."),
        ),
        healthy=(
            (BOTH, "Exposure is fine (mean brightness {median:.2f})."),
            (BOTH, "Lighting is even, brightness is {median:.2f}."),
            (TRAIN, "Images are well exposed."),
            (TEST, "Lighting is fine and images are well exposed."),
        ),
    ),
    RESOLUTION: Wording(
        remarkable=(
            (BOTH, "{of_images} too small (down to {minimum:.0f} pixels)."),
            (BOTH, "Resolution is low: {percent}% are pixelated or tiny."),
            (TRAIN, "Resolution is a problem, {images_are} small, the smallest with {minimum:.0f} pixels a side."),
            (TEST, "Tiny or pixelated images are a problem: {count} of {total}."),
        ),
        healthy=(
            (BOTH, "Resolution is fine ({median:.0f} pixels)."),
            (BOTH, "Image sizes are good, {minimum:.0f} pixels or more."),
            (TRAIN, "All images are large enough."),
            (TEST, "Resolution is good and images are large enough."),
        ),
    ),
    SHAPE: Wording(
        remarkable=(
            (BOTH, "{of_images} long strips (aspect ratio up to {extreme:.1f})."),
            (BOTH, "Shapes are odd: {percent}% are padded to strips."),
            (TRAIN, "Aspect ratio is a problem, it reaches {extreme:.1f}, {images_are} strips."),
            (TEST, "Long strips are a problem: the aspect ratio reaches {extreme:.1f}."),
        ),
        healthy=(
            (BOTH, "Aspect ratio is fine ({median:.1f})."),
            (BOTH, "Shapes are regular."),
            (TRAIN, "No image is a strip."),
            (TEST, "Shapes are fine, the aspect ratio is regular."),
        ),
    ),
    EXACT_COPIES: Wording(
        remarkable=(
            (BOTH, "{items_are} copied exactly from others."),
            (BOTH, "Identical items repeat: {percent}% are exact copies."),
            (TRAIN, "Exact duplicates are a problem, {items_are} identical to earlier ones."),
            (TEST, "{percent}% repeat others: identical, exact duplicates."),
        ),
        healthy=(
            (BOTH, "No item is an exact copy."),
            (BOTH, "All items are unique."),
            (TRAIN, "Exact duplicates were not found."),
            (TEST, "Items are unique, no exact copy was found."),
        ),
    ),
    NEAR_COPIES: Wording(
        remarkable=(
            (BOTH, "{items_are} nearly copied from others, edited or compressed again."),
            (BOTH, "Some items look alike: {percent}% are near copies."),
            (TRAIN, "Near duplicates are a problem, {items_are} almost alike."),
            (TEST, "{percent}% look almost alike: edited near duplicates."),
        ),
        healthy=(
            (BOTH, "No item is a near copy."),
            (BOTH, "Items look distinct."),
            (TRAIN, "Near duplicates were not found."),
            (TEST, "Items look distinct, no near copy was found."),
        ),
    ),
    TEXT_LENGTH: Wording(
        remarkable=(
            (BOTH, "{count} of {total} questions have an odd length ({minimum:.0f} to {extreme:.0f} words)."),
            (BOTH, "Question texts are cut or padded: {percent}% have {minimum:.0f} words or up to {extreme:.0f}."),
            (TRAIN, "Text length is a problem, {count} questions are too short or too long."),
            (TEST, "Questions are cut or padded: {count} of {total} have an odd length."),
        ),
        healthy=(
            (BOTH, "Question length is fine ({median:.0f} words)."),
            (BOTH, "Texts are complete."),
            (TRAIN, "All questions have a normal length."),
            (TEST, "Texts are fine, questions have a normal length."),
        ),
    ),
    ANSWERS: Wording(
        remarkable=(
            (BOTH, "{count} of {total} questions got contradicting answers (agreement {minimum:.2f})."),
            (BOTH, "Annotators disagree on {percent}% of the questions."),
            (TRAIN, "Answers are a problem, agreement falls to {minimum:.2f} for {count} questions."),
            (TEST, "Contradicting answers are a problem: annotators disagree on {count} questions."),
        ),
        healthy=(
            (BOTH, "Annotators agree (agreement {median:.2f})."),
            (BOTH, "Answers are consistent."),
            (TRAIN, "No question got contradicting answers."),
            (TEST, "Answers are consistent, annotators agree."),
        ),
    ),
}


def choose(rng: random.Random, sentences: tuple[tuple[str, str], ...], split: str) -> str:
    """One sentence allowed in this split; anything but the test split counts as training."""
    excluded = TRAIN if split == TEST else TEST
    return rng.choice([sentence for where, sentence in sentences if where != excluded])
