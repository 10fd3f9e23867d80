"""The dialects' task: easy-VQA's images and questions as they are; only examples of the same dialect tell answers."""

import json
import re
from collections import Counter

import easy_vqa
import pytest

from data.dialects import (
    DIALECTS,
    KEYS,
    NOUNS,
    draw_nouns,
    find_dialect,
    find_scenes,
    main,
    training_and_test_scenes,
)
from data.io.image_sources import SourceItem
from data.vqa import load_records
from rewards.vqa_accuracy import VqaAccuracy

SIZES = {"train": 120, "queries": 90, "dev": 60, "test": 96}
OPTIONS = ["--train_examples", "120", "--train_queries", "90", "--dev", "60", "--test", "96"]


def _easy_vqa() -> dict[str, dict[tuple[str, str], str]]:
    """(image, question) -> answer, of its training and of its test images."""
    parts = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    return {
        part: {(paths[image], question): answer for question, answer, image in zip(*questions, strict=True)}
        for part, (questions, paths) in parts.items()
    }


def _write(folder, seed: int = 5) -> dict[str, list[dict]]:
    main(["--output_dir", str(folder), "--seed", str(seed), *OPTIONS])
    return {split: [json.loads(line) for line in (folder / f"{split}.jsonl").open()] for split in SIZES}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("dialects"))


def _keys(row: dict) -> list[tuple[str, str]]:
    dialect = next(dialect for dialect in DIALECTS if dialect.name == row["question_type"])
    return [(dialect.name, row[attribute]) for attribute in dialect.attributes]


def test_sizes_and_ids(splits):
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_every_dialect_comes_as_often_and_a_third_of_the_answers_has_two_attributes(splits):
    for split, rows in splits.items():
        counts = Counter(row["question_type"] for row in rows)
        assert set(counts.values()) == {SIZES[split] // len(DIALECTS)}
        words = Counter((row["answer_type"], len(row["answers"][0].split())) for row in rows)
        third = SIZES[split] // 3
        assert words == {("two attributes", 2): third, ("one attribute", 1): SIZES[split] - third}


def test_no_image_stands_in_two_splits(splits):
    images = [{row["image"] for row in rows} for rows in splits.values()]
    assert len(set.union(*images)) == sum(map(len, images))


def test_images_and_questions_are_those_of_easy_vqa_each_part_from_its_own(splits):
    source = _easy_vqa()
    for split, rows in splits.items():
        part = source["train" if split in ("train", "queries") else "test"]
        for row in rows:
            original = part[row["image"], row["question"]]
            assert (
                original
                == row["color" if row["question_type"].startswith(("what color", "what is the color")) else "shape"]
            )


def test_every_key_has_one_noun_and_every_noun_one_key(splits):
    nouns = {}
    for row in (row for rows in splits.values() for row in rows):
        assert row["answers"] == [row["answers"][0]] * 10
        for key, noun in zip(_keys(row), row["answers"][0].split(), strict=True):
            assert nouns.setdefault(key, noun) == noun
    assert len(nouns) == len(KEYS) == 2 * 8 + 2 * 3 + 2 * (3 + 8)
    assert len(set(nouns.values())) == len(nouns)
    assert nouns == draw_nouns(5)


def test_records_are_readable_and_keep_their_kinds(tmp_path):
    _write(tmp_path)
    records = load_records(tmp_path, "test")
    assert len(records) == SIZES["test"]
    assert {record.answer_type for record in records} == {"one attribute", "two attributes"}


def test_a_seed_gives_the_same_files_and_another_one_other_nouns(splits, tmp_path):
    assert _write(tmp_path / "same") == splits
    other = _write(tmp_path / "other", seed=6)
    assert {row["image"] for row in other["train"]} != {row["image"] for row in splits["train"]}
    assert draw_nouns(6) != draw_nouns(5)


def test_every_open_question_of_easy_vqa_has_a_dialect_and_no_other_question_has_one():
    for part in _easy_vqa().values():
        for (_, question), answer in part.items():
            assert (find_dialect(question) is None) == (answer in ("yes", "no")), question


def test_colour_and_shape_are_read_from_questions_and_answers():
    items = [
        SourceItem("1.png", "what shape is present?", ("circle",)),
        SourceItem("1.png", "is no red shape present?", ("no",)),
        SourceItem("2.png", "what is the teal shape?", ("triangle",)),
        SourceItem("3.png", "what color is the shape?", ("blue",)),  # its shape stays unknown
        SourceItem("3.png", "is a circle present?", ("no",)),
        SourceItem("3.png", "is there not a rectangle?", ("yes",)),
    ]
    assert [(scene.image, scene.color, scene.shape) for scene in find_scenes(items)] == [
        ("1.png", "red", "circle"),
        ("2.png", "teal", "triangle"),
    ]


def test_colour_and_shape_agree_with_every_statement_of_easy_vqa():
    """Also those about what is absent, which nothing was read from."""
    source = {**_easy_vqa()["train"], **_easy_vqa()["test"]}
    training, held_out = training_and_test_scenes()
    values = {scene.image: {scene.color, scene.shape} for scene in training + held_out}
    checked = 0
    for (image, question), answer in source.items():
        if answer in ("yes", "no") and image in values:
            words = set(question.rstrip("?").split())
            shown = bool(words & values[image])
            assert shown == ((answer == "yes") != bool(words & {"no", "not"})), (image, question)
            checked += 1
    assert checked > 30_000


def test_nouns_are_words_that_no_question_and_no_rule_of_vqa_accuracy_changes():
    assert len(set(NOUNS)) == len(NOUNS) >= len(KEYS)
    score = VqaAccuracy()
    for noun in NOUNS:
        assert score([noun], answers=[[noun] * 10]) == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train_examples", "9000"], "train: 9000 records need 1500 questions 'what .*', found "),
        (["--dev", "0"], "--dev: expected at least 1, found 0"),
    ],
)
def test_sizes_that_cannot_be_had(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--output_dir", str(tmp_path / "out"), *options])
    assert re.search(message, f"{stop.value} {capsys.readouterr().err}")
    assert not (tmp_path / "out").exists()
