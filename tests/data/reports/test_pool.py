"""Pools on disk: reading, order, and what is refused."""

import pytest

from data.io.records import RecordError
from data.reports.pool import Item, Pool, load_pool


def test_a_pool_is_read_in_its_order_with_its_defaults(write_lines, tmp_path):
    write_lines(
        "items.jsonl",
        {"id": "b", "image": "images/b.png", "question": "Why?", "answers": ["so", "so"]},
        {"id": 2, "image": "images/2.png"},
    )
    pool = Pool(tmp_path)
    assert len(pool) == 2
    assert pool.ids == ["b", 2]
    assert pool.items[0] == Item(id="b", image="images/b.png", question="Why?", answers=("so", "so"))
    assert (pool.items[1].question, pool.items[1].answers) == ("", ())
    assert pool.image_path(pool.items[1]) == tmp_path / "images" / "2.png"


def test_absolute_image_paths_stay(tmp_path):
    pool = Pool(tmp_path, [Item(id=1, image="/elsewhere/1.png")])
    assert str(pool.image_path(pool.items[0])) == "/elsewhere/1.png"


def test_items_that_were_saved_are_read_again(tmp_path):
    items = [Item(id=1, image="1.png", question="ü?", answers=("a",)), Item(id="1", image="1.png")]
    Pool(tmp_path, items).save_items()
    assert Pool(tmp_path).items == items


def test_an_id_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(RecordError) as caught:
        Pool(tmp_path, [Item(id="a", image="1.png"), Item(id="a", image="2.png")])
    assert caught.value.problems == [f"{tmp_path / 'items.jsonl'}: field 'id': duplicate 'a'"]


def test_a_pool_without_items_is_refused(write_lines, tmp_path):
    path = write_lines("items.jsonl")
    with pytest.raises(RecordError) as caught:
        Pool(tmp_path)
    assert caught.value.problems == [f"{path}: expected at least one item, found none"]


def test_malformed_items_are_all_named(write_lines, tmp_path):
    path = write_lines("items.jsonl", {"id": 1}, {"id": 2, "image": "a.png", "colour": "red"})
    with pytest.raises(RecordError) as caught:
        Pool(tmp_path)
    assert caught.value.problems == [
        f"{path}:1: field 'image': Field required (found missing)",
        f"{path}:2: field 'colour': Extra inputs are not permitted (found 'red')",
    ]


def test_a_missing_pool_is_named(tmp_path):
    with pytest.raises(RecordError, match="items.jsonl: no such file or folder"):
        Pool(tmp_path)


def test_a_pool_is_read_once_a_process(write_lines, tmp_path):
    path = write_lines("items.jsonl", {"id": 1, "image": "a.png"})
    first = load_pool(str(tmp_path))
    path.unlink()
    assert load_pool(str(tmp_path)) is first
