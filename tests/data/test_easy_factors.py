"""Annotations on easy-VQA: damages are there and alone, attributes are what the questions state."""

import json
import re

import pytest

from data.easy_factors import JUDGED, PHRASES, main, stated_attributes
from data.io.image_sources import SourceItem
from data.io.images import open_image
from data.io.splits import SPLITS
from data.reports.aspects import stands_out
from data.reports.damage import DAMAGES
from data.reports.measurements import HEALTHY_RESOLUTION, measure_image, measure_items
from data.reports.pool import Item


def rows(folder, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def damages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damages")
    main(["--kind", "damages", "--output_dir", str(folder), "--images", "100", "--workers", "2"])
    return folder


def test_pictures_stand_out_in_what_their_texts_say_and_in_nothing_else(damages):
    aspect_of = {text: DAMAGES[name].aspect for name, texts in PHRASES.items() for text in texts}
    seen = set()
    for split in SPLITS:
        for row in rows(damages, split):
            picture = open_image(damages / row["image_path"])
            [measured] = measure_items([Item(id=0, image="")], [measure_image(picture)])
            outstanding = {aspect for aspect in JUDGED if stands_out(aspect, measured, HEALTHY_RESOLUTION * 64)}
            assert outstanding == {aspect_of[text] for text in row["filter_factor_texts"]}
            seen |= outstanding
    assert seen == set(JUDGED)


def test_some_pictures_have_no_damage_and_some_have_two(damages):
    counts = [len(row["filter_factor_texts"]) for row in rows(damages, "train")]
    assert len(counts) == 80
    assert min(counts.count(number) for number in (0, 1, 2)) >= 8
    assert max(counts) == 2


def test_the_same_seed_makes_the_same_pictures(damages, tmp_path):
    main(["--kind", "damages", "--output_dir", str(tmp_path), "--images", "20", "--workers", "1"])
    assert rows(tmp_path, "train") == rows(damages, "train")[:16]
    for row in rows(tmp_path, "train"):
        assert (tmp_path / row["image_path"]).read_bytes() == (damages / row["image_path"]).read_bytes()


def test_attributes_name_a_shape_and_a_colour(tmp_path):
    main(["--kind", "attributes", "--output_dir", str(tmp_path), "--images", "100"])
    paths = set()
    for split in SPLITS:
        for row in rows(tmp_path, split):
            shape, colour = row["filter_factor_texts"]
            assert re.search(r"\b(circle|rectangle|triangle)$", shape)
            assert re.search(r"\b(black|blue|brown|gray|green|red|teal|yellow)\b", colour)
            assert (tmp_path / row["image_path"]).is_file()
            paths.add(str((tmp_path / row["image_path"]).resolve()))
    assert len(paths) == 100


def test_what_questions_state():
    items = [
        SourceItem("a", "what color is the triangle?", ("blue",)),
        SourceItem("b", "is there not a circle?", ("no",)),
        SourceItem("b", "is there a red shape?", ("yes",)),
        SourceItem("b", "is there a teal shape?", ("no",)),
        SourceItem("c", "is no yellow shape present?", ("yes",)),
        SourceItem("c", "what shape is in the image?", ("circle",)),
    ]
    assert stated_attributes(items) == {"a": ("triangle", "blue"), "b": ("circle", "red")}


def test_more_images_than_there_are_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="error: --images: 8000 wanted in the train split, easy-VQA has"):
        main(["--kind", "attributes", "--output_dir", str(tmp_path), "--images", "10000"])
