"""The aspects of data quality: what is measured for each, which agent mends it, and which items stand out."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.reports.measurements import (
    HEALTHY,
    HEALTHY_RESOLUTION,
    Bounds,
    Measurement,
    exact_copies,
    median_side,
    near_copies,
)
from data.reports.pool import Item, ItemId


@dataclass(frozen=True)
class Aspect:
    """One way in which a data set can be good or bad.

    Attributes:
        agent: name of the filtering agent that mends it (`filter_agents/registry.py`).
        quantities: fields of `Measurement` that are compared with bounds; empty for copies.
    """

    agent: str
    quantities: tuple[str, ...] = ()


BLUR = Aspect("blur_filter", ("blur",))
EXPOSURE = Aspect("exposure_filter", ("brightness", "clipping"))
RESOLUTION = Aspect("resolution_filter", ("side",))
SHAPE = Aspect("aspect_ratio_filter", ("aspect",))
EXACT_COPIES = Aspect("exact_duplicate_filter")
NEAR_COPIES = Aspect("near_duplicate_filter")
TEXT_LENGTH = Aspect("text_length_filter", ("question_words", "answer_words"))
ANSWERS = Aspect("answer_consistency_filter", ("agreement",))

IMAGE_ASPECTS = (BLUR, EXPOSURE, RESOLUTION, SHAPE, EXACT_COPIES, NEAR_COPIES)
TEXT_ASPECTS = (TEXT_LENGTH, ANSWERS)
ASPECTS = IMAGE_ASPECTS + TEXT_ASPECTS
"""What reports can be written about. Other agents may exist; these are those with a measurement."""


def aspects_of(items: list[Item]) -> tuple[Aspect, ...]:
    """The aspects that can be judged: those of texts only where there are questions."""
    return ASPECTS if any(item.question for item in items) else IMAGE_ASPECTS


def resolution_limit(measurements: Sequence[Measurement]) -> float:
    """The shortest effective side, in pixels, that is unremarkable in this pool."""
    return HEALTHY_RESOLUTION * median_side(measurements)


def healthy_bounds(aspect: Aspect, side_limit: float) -> dict[str, Bounds]:
    """Bounds of an aspect's quantities.

    Args:
        side_limit: see `resolution_limit`.
    """
    return {
        quantity: Bounds(minimum=side_limit) if quantity == "side" else HEALTHY[quantity]
        for quantity in aspect.quantities
    }


def stands_out(aspect: Aspect, row: Measurement, side_limit: float) -> bool:
    """Whether a single item lies outside the healthy bounds (always false for copies, which need the pool)."""
    return not row.lies_within(healthy_bounds(aspect, side_limit))


def remarkable_ids(aspect: Aspect, items: list[Item], measurements: list[Measurement]) -> list[ItemId]:
    """Ids of the items that stand out in one aspect, in their order."""
    if aspect == EXACT_COPIES:
        return exact_copies(items, measurements)
    if aspect == NEAR_COPIES:
        exact = set(exact_copies(items, measurements))
        distance = HEALTHY["distance"].maximum
        return [copy for copy in near_copies(items, measurements, distance) if copy not in exact]
    side_limit = resolution_limit(measurements)
    return [row.id for row in measurements if stands_out(aspect, row, side_limit)]
