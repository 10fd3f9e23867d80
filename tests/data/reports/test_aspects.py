"""Aspects of quality: their agents, their healthy bounds, and which items stand out."""

import pytest

from data.reports.aspects import (
    ANSWERS,
    ASPECTS,
    BLUR,
    EXACT_COPIES,
    EXPOSURE,
    IMAGE_ASPECTS,
    NEAR_COPIES,
    RESOLUTION,
    SHAPE,
    TEXT_LENGTH,
    aspects_of,
    healthy_bounds,
    remarkable_ids,
    resolution_limit,
    stands_out,
)
from data.reports.measurements import Bounds, Measurement
from data.reports.pool import Item
from filter_agents.registry import AGENTS


def _row(number: int = 0, **figures) -> Measurement:
    healthy = {"blur": 0.5, "brightness": 0.5, "clipping": 0.1, "side": 64.0, "aspect": 1.0, "question_words": 5}
    rest = {"answer_words": 1, "agreement": 1.0, "pixels": str(number), "hash": f"{number:x}" * 64}
    return Measurement(id=number, **{**healthy, **rest, **figures})


def test_every_aspect_is_mended_by_an_agent_of_its_own():
    agents = [aspect.agent for aspect in ASPECTS]
    assert len(set(agents)) == len(agents) == 8
    assert set(agents) <= set(AGENTS)


@pytest.mark.parametrize(
    ("figures", "aspect"),
    [
        ({"blur": 0.76}, BLUR),
        ({"brightness": 0.14}, EXPOSURE),
        ({"clipping": 0.71}, EXPOSURE),
        ({"side": 38.3}, RESOLUTION),
        ({"aspect": 2.01}, SHAPE),
        ({"question_words": 2}, TEXT_LENGTH),
        ({"question_words": 41}, TEXT_LENGTH),
        ({"answer_words": 21}, TEXT_LENGTH),
        ({"agreement": 0.59}, ANSWERS),
    ],
)
def test_an_item_stands_out_in_the_aspect_of_its_figure_alone(figures, aspect):
    assert [found for found in ASPECTS if stands_out(found, _row(**figures), side_limit=38.4)] == [aspect]


def test_texts_are_judged_where_there_are_questions():
    silent, asked = Item(id=1, image="1.png"), Item(id=2, image="2.png", question="Why?")
    assert aspects_of([silent]) == IMAGE_ASPECTS
    assert aspects_of([silent, asked]) == ASPECTS


def test_the_resolution_limit_is_a_share_of_the_median():
    rows = [_row(side=side) for side in (10.0, 50.0, 1000.0)]
    assert resolution_limit(rows) == 30.0
    assert healthy_bounds(RESOLUTION, 30.0) == {"side": Bounds(minimum=30.0)}


def test_exact_copies_do_not_count_as_near_copies():
    items = [Item(id=number, image="") for number in range(3)]
    rows = [_row(0), _row(1, pixels="0", hash="0" * 64), _row(2, hash="0" * 63 + "1")]
    assert remarkable_ids(EXACT_COPIES, items, rows) == [1]
    assert remarkable_ids(NEAR_COPIES, items, rows) == [2]


def test_remarkable_items_are_named_in_their_order():
    items = [Item(id=number, image="") for number in range(4)]
    rows = [_row(0, blur=0.9), _row(1), _row(2, blur=0.75), _row(3, blur=1.0)]
    assert remarkable_ids(BLUR, items, rows) == [0, 3]
