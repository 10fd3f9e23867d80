"""T10: data is told by what it holds: rows, the images that they name, and the pools that rewards read."""

import json
import os
import shutil
from dataclasses import make_dataclass

import numpy as np
import pytest
from PIL import Image

from data.factors import LabelledImage
from data.io.digests import file_digest, rows_digest
from data.preferences import PreferenceRecord
from data.reports.pool import Item, Pool
from data.vqa import VqaRecord

RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


def _bytes(path) -> bytes:
    return path.read_bytes()


ROWS = {
    "a path": lambda path: {"images": [str(path)]},
    "a path object": lambda path: {"image": path},
    "another name": lambda path: {"image_path": str(path)},
    "as datasets stores it": lambda path: {"images": [{"bytes": None, "path": str(path)}]},
    "bytes": lambda path: {"images": [_bytes(path)]},
    "bytes as datasets stores them": lambda path: {"image": {"bytes": _bytes(path), "path": "a.png"}},
    "a picture": lambda path: {"images": [Image.open(path)]},
    "an array": lambda path: {"images": [np.asarray(Image.open(path))]},
    "a part of a message": lambda path: {"prompt": [{"content": [{"type": "image", "image": str(path)}]}]},
    "a record of VQA": lambda path: VqaRecord(image=str(path), question="what?", answers=["red"]),
    "a preference": lambda path: PreferenceRecord(
        query="what?", images=[str(path)], response=["a", "b"], human_ranking=[0, 1]
    ),
    "a labelled image": lambda path: LabelledImage(image_path=str(path), filter_factor_texts=["x"], factors=[]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_t10_another_picture_under_the_same_name_is_seen(tmp_path, kind):
    path = tmp_path / "a.png"
    RED.save(path)
    before = rows_digest([ROWS[kind](path)])
    assert rows_digest([ROWS[kind](path)]) == before
    BLUE.save(path)
    os.utime(path, ns=(0, 0))
    assert rows_digest([ROWS[kind](path)]) != before


def test_t10_a_picture_is_the_same_wherever_it_lies(tmp_path):
    RED.save(tmp_path / "a.png")
    shutil.copyfile(tmp_path / "a.png", tmp_path / "b.png")
    found = {rows_digest([{"images": [str(tmp_path / name)]}]) for name in ("a.png", "b.png")}
    assert found == {rows_digest([{"images": [(tmp_path / "a.png").read_bytes()]}])}


def test_t10_pictures_of_other_palettes_are_others():
    first = Image.new("P", (16, 16))
    other = first.copy()
    first.putpalette([255, 0, 0])
    other.putpalette([0, 0, 255])
    assert rows_digest([{"images": [first]}]) != rows_digest([{"images": [other]}])
    assert rows_digest([{"mask": first}]) != rows_digest([{"mask": other}])


@pytest.fixture
def pool(tmp_path):
    """Folder of two pictures."""
    folder = tmp_path / "pools" / "one"
    (folder / "images").mkdir(parents=True)
    for name, picture in (("0.png", RED), ("1.png", BLUE)):
        picture.save(folder / "images" / name)
    Pool(folder, [Item(id=number, image=f"images/{number}.png", question="what?") for number in range(2)]).save_items()
    return folder


def test_t10_a_column_called_where_counts_and_the_place_of_a_row_does_not():
    assert rows_digest([{"where": "left"}]) != rows_digest([{"where": "right"}])
    assert rows_digest([{"columns": {"where": 1}}]) != rows_digest([{"columns": {"where": 2}}])
    placed = make_dataclass("Placed", ["id", "where"])
    assert rows_digest([placed(1, "a.jsonl:1")]) == rows_digest([placed(1, "b.jsonl:2")])
    assert rows_digest([placed(1, "a.jsonl:1")]) != rows_digest([placed(2, "a.jsonl:1")])


def test_t10_what_lies_in_a_pool_counts_and_not_where_it_lies(pool, tmp_path):
    before = rows_digest([{"pool": str(pool)}])
    (pool / "measurements.json").write_text("{}")  # rewards leave it there
    assert rows_digest([{"pool": str(pool)}]) == before
    shutil.copytree(pool, tmp_path / "elsewhere")
    assert rows_digest([{"pool": str(tmp_path / "elsewhere")}]) == before
    RED.rotate(90).resize((32, 32)).save(tmp_path / "elsewhere" / "images" / "1.png")
    assert rows_digest([{"pool": str(tmp_path / "elsewhere")}]) != before
    shutil.copytree(pool, tmp_path / "asked_otherwise")
    items = [json.loads(line) | {"question": "which?"} for line in (pool / "items.jsonl").read_text().splitlines()]
    (tmp_path / "asked_otherwise" / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    assert rows_digest([{"pool": str(tmp_path / "asked_otherwise")}]) != before


def test_t10_pools_of_ids_stay_what_they_are():
    assert rows_digest([{"pool": [1, 2]}]) != rows_digest([{"pool": [2, 1]}])


def test_t10_a_folder_is_told_by_what_its_user_put_there(pool, tmp_path):
    from trainers.run.origin import source_content

    before = source_content(str(tmp_path / "pools"))
    (pool / "measurements.json").write_text("{}")
    (tmp_path / "pools" / ".rows.jsonl.lock").write_text("{}")
    assert source_content(str(tmp_path / "pools")) == before
    BLUE.save(pool / "images" / "0.png")
    assert source_content(str(tmp_path / "pools")) != before
    assert source_content(str(pool / "items.jsonl")) == file_digest(pool / "items.jsonl")
