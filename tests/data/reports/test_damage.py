"""Every damage spoils a real photograph in its own aspect and in no other."""

import random

import pytest

from data.reports.aspects import ASPECTS, resolution_limit, stands_out
from data.reports.damage import DAMAGES, Draft
from data.reports.measurements import exact_copies, measure_image, measure_items, near_copies
from data.reports.pool import Item

ANSWERS = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def draft(photo) -> Draft:
    return Draft(photo, "What colour is it?", ("red",))


def _measured(*drafts: Draft):
    items = [
        Item(id=number, image="", question=draft.question, answers=draft.answers)
        for number, draft in enumerate(drafts)
    ]
    return items, measure_items(items, [measure_image(draft.image) for draft in drafts])


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_photograph_stands_out_in_the_aspect_of_its_damage_alone(draft, name):
    damage = DAMAGES[name]
    _, healthy = _measured(draft)
    for seed in range(4):
        _, (row,) = _measured(damage.apply(draft, random.Random(seed), ANSWERS))
        outstanding = [aspect for aspect in ASPECTS if stands_out(aspect, row, resolution_limit(healthy))]
        assert outstanding == ([] if damage.copies else [damage.aspect])


def test_copies_are_found_where_they_were_made(draft):
    exact = DAMAGES["exact_copies"].apply(draft, random.Random(0), ANSWERS)
    near = DAMAGES["near_copies"].apply(draft, random.Random(0), ANSWERS)
    items, rows = _measured(draft, exact, near)
    assert exact_copies(items, rows) == [1]
    assert near_copies(items, rows, 0.1) == [1, 2]


@pytest.mark.parametrize("name", [name for name, damage in DAMAGES.items() if not damage.needs_text])
def test_damages_of_pictures_leave_texts_and_the_original_alone(draft, name):
    before = draft.image.tobytes()
    damaged = DAMAGES[name].apply(draft, random.Random(0), ANSWERS)
    assert (damaged.question, damaged.answers) == (draft.question, draft.answers)
    assert draft.image.tobytes() == before


@pytest.mark.parametrize("name", [name for name, damage in DAMAGES.items() if damage.needs_text])
def test_damages_of_texts_leave_the_picture_alone(draft, name):
    damaged = DAMAGES[name].apply(draft, random.Random(0), ANSWERS)
    assert damaged.image is draft.image
    assert (damaged.question, damaged.answers) != (draft.question, draft.answers)


@pytest.mark.parametrize("name", DAMAGES)
def test_the_same_seed_gives_the_same_damage(draft, name):
    first, again = (DAMAGES[name].apply(draft, random.Random(5), ANSWERS) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.question, first.answers) == (again.question, again.answers)


def test_sizes_after_damage_are_those_promised(draft):
    sizes = {name: DAMAGES[name].apply(draft, random.Random(1), ANSWERS).image.size for name in DAMAGES}
    assert sizes["blur"] == sizes["soft_upscale"] == sizes["pixelation"] == (96, 96)
    assert 29 <= sizes["shrinking"][0] <= 48
    assert 230 <= sizes["padding"][0] <= 336
    assert sizes["padding"][1] == 96


def test_contradicting_answers_are_half_of_them_wrong(draft):
    answers = DAMAGES["contradicting_answers"].apply(draft, random.Random(0), ANSWERS).answers
    assert len(answers) == 6
    assert answers.count("red") == 3
    assert set(answers) <= set(ANSWERS)
