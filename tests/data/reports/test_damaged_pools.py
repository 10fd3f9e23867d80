"""Drawing pools whose flaws are known."""

import random

import pytest

from data.io.image_sources import SourceItem, load_all, load_splits
from data.reports import damaged_pools
from data.reports.aspects import ASPECTS, BLUR, EXACT_COPIES, IMAGE_ASPECTS, remarkable_ids
from data.reports.damage import DAMAGES
from data.reports.damaged_pools import DamageError, PoolDrawer, as_items

ALL_AGENTS = tuple(aspect.agent for aspect in ASPECTS)
IMAGE_AGENTS = tuple(aspect.agent for aspect in IMAGE_ASPECTS)


@pytest.fixture(scope="module")
def crops(image_folder) -> list[SourceItem]:
    return load_all(str(image_folder))


@pytest.fixture(scope="module")
def questions() -> list[SourceItem]:
    return load_splits("easy_vqa", (0.8, 0.1, 0.1), seed=0)["validation"]


def _remarkable(pool) -> dict[str, set[int]]:
    items, measurements = as_items(pool.members)
    found = {aspect.agent: set(remarkable_ids(aspect, items, measurements)) for aspect in ASPECTS}
    return {agent: positions for agent, positions in found.items() if positions}


def _planned(pool) -> dict[str, set[int]]:
    planned = {}
    for position, name in pool.damage_of.items():
        planned.setdefault(DAMAGES[name].aspect.agent, set()).add(position)
    return planned


def test_what_stands_out_in_pools_of_questions_is_what_was_damaged(questions):
    drawer = PoolDrawer(questions, 10, ALL_AGENTS, (1, 3))
    pools = [drawer.draw(random.Random(seed)) for seed in range(12)]
    for pool in pools:
        assert _remarkable(pool) == _planned(pool)
        assert 1 <= len(_planned(pool)) <= 3
        assert 2 <= len(pool.damage_of) <= 6  # between 20% and 60% of ten
        assert 0 not in pool.damage_of
        assert len(pool.members) == 10
    assert len({agent for pool in pools for agent in _planned(pool)}) >= 6


def test_what_stands_out_in_pools_of_photographs_is_what_was_damaged(crops):
    drawer = PoolDrawer(crops, 6, ALL_AGENTS, (2, 2))
    for seed in range(6):
        pool = drawer.draw(random.Random(seed))
        remarkable = _remarkable(pool)
        assert {agent: remarkable[agent] for agent in remarkable if agent in IMAGE_AGENTS} == _planned(pool)
        assert len(_planned(pool)) == 2


def test_only_damages_of_the_wanted_agents_are_used(crops):
    drawer = PoolDrawer(crops, 6, (BLUR.agent, EXACT_COPIES.agent), (1, 3))
    names = {name for seed in range(8) for name in drawer.draw(random.Random(seed)).damage_of.values()}
    assert names == {"blur", "soft_upscale", "exact_copies"}


def test_the_same_seed_draws_the_same_pool(crops):
    def drawn(seed):
        pool = PoolDrawer(crops, 6, ALL_AGENTS, (1, 3)).draw(random.Random(seed))
        return pool.damage_of, [member.draft.image.tobytes() for member in pool.members]

    assert drawn(4) == drawn(4) != drawn(5)


def test_agents_for_texts_need_a_source_with_texts(crops):
    with pytest.raises(
        DamageError, match="^none of the agents text_length_filter has a damage that this source allows"
    ):
        PoolDrawer(crops, 6, ("text_length_filter",), (1, 1))


def test_too_few_images_are_an_error_that_says_so(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(damaged_pools, "ATTEMPTS", 10)
    photo.save(tmp_path / "one.png")
    photo.rotate(180).save(tmp_path / "two.png")
    drawer = PoolDrawer(load_all(str(tmp_path)), 6, ("blur_filter",), (1, 1))
    with pytest.raises(
        DamageError, match="no pool of 6 items could be damaged as planned .* has 2 images, more may be"
    ):
        drawer.draw(random.Random(0))


def test_a_source_of_poor_images_is_an_error_that_says_so(photo, tmp_path):
    photo.resize((6 * 96, 96)).save(tmp_path / "strip.png")
    with pytest.raises(DamageError, match="no image of the source can be healthy without standing out otherwise"):
        PoolDrawer([SourceItem(str(tmp_path / "strip.png"))], 4, ("blur_filter",), (1, 1)).draw(random.Random(0))
