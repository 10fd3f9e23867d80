"""Annotations become labelled images; every broken one is named by file, line and field."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from data.factors import (
    FACTORS_FILE,
    LabelledImage,
    load_factor_list,
    load_factor_set,
    load_labelled,
    main,
    multi_hot,
)
from data.io.counts import counted
from data.io.records import RecordError
from data.io.splits import SPLITS

TEXTS = {
    "dark": ("too dark", "the image is too dark", "very dark picture"),
    "blurry": ("blurry image", "the picture is blurry"),
    "watermark": ("has a watermark", "watermark on the image"),
}


@pytest.fixture
def pictures(tmp_path):
    """40 image files of different colours."""
    (tmp_path / "images").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (6 * number, 0, 0)).save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path


def annotations(empty: bool = False) -> list[dict]:
    rng = random.Random(0)
    rows = []
    for number in range(40):
        kinds = rng.sample(sorted(TEXTS), 0 if empty and number % 4 == 0 else rng.choice((1, 2)))
        texts = [rng.choice(TEXTS[kind]) for kind in kinds]
        rows.append({"image_path": f"images/{number:02d}.png", "image_id": number, "filter_factor_texts": texts})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_annotations_are_labelled_divided_and_counted(pictures, capsys):
    main(["--dataset_name", str(write(pictures / "a.jsonl", annotations())), "--output_dir", str(pictures / "out")])
    printed = capsys.readouterr().out
    factors = load_factor_set(pictures / "out")
    assert len(factors.ids) == 3
    found = {split: load_labelled(pictures / "out", split, factors.ids) for split in SPLITS}
    assert {split: len(records) for split, records in found.items()} == {"train": 32, "validation": 4, "test": 4}
    kind_of = {text: kind for kind, texts in TEXTS.items() for text in texts}
    for record in (record for records in found.values() for record in records):
        names = {kind_of[factors.names[factor]] for factor in record.factors}
        assert names == {kind_of[text] for text in record.filter_factor_texts}
        assert record.factors == sorted(record.factors)
    for factor in factors.ids:
        count = sum(factor in record.factors for record in found["train"])
        assert any(line.split()[:2] == [factor, str(count)] for line in printed.splitlines())
    assert "40 valid annotations" in printed
    assert "dropped no text" in printed


def test_the_order_of_the_annotations_changes_nothing(pictures):
    rows = annotations()
    main(["--dataset_name", str(write(pictures / "a.jsonl", rows)), "--output_dir", str(pictures / "first")])
    random.Random(1).shuffle(rows)
    main(["--dataset_name", str(write(pictures / "a.jsonl", rows)), "--output_dir", str(pictures / "second")])
    for name in (FACTORS_FILE, "train.jsonl", "validation.jsonl", "test.jsonl"):
        assert (pictures / "first" / name).read_bytes() == (pictures / "second" / name).read_bytes()


def test_a_folder_keeps_its_splits_and_factors_come_from_training(pictures, capsys):
    rows = annotations()
    (pictures / "raw").mkdir()
    for row in rows:
        row["image_path"] = "../" + row["image_path"]
    rows[38]["filter_factor_texts"] = ["watermarked picture"]
    rows[39]["filter_factor_texts"] = ["stock market prices fell"]
    parts = {"train": rows[:30], "validation": rows[30:35], "test": rows[35:]}
    for split, part in parts.items():
        write(pictures / "raw" / f"{split}.jsonl", part)
    main(["--dataset_name", str(pictures / "raw"), "--output_dir", str(pictures / "out")])
    factors = load_factor_set(pictures / "out")
    assert "stock market prices fell" not in factors.id_of_text
    test = load_labelled(pictures / "out", "test", factors.ids)
    assert [record.image_id for record in test] == [35, 36, 37, 38, 39]
    assert test[3].factors == [factors.id_of_text["has a watermark"]]
    assert test[4].factors == []
    assert "dropped 1 texts that mean no factor, 1 times: 'stock market prices fell' (1)" in capsys.readouterr().out


def test_an_image_in_two_splits_is_an_error(pictures):
    (pictures / "raw").mkdir()
    rows = [row | {"image_path": "../" + row["image_path"]} for row in annotations()]
    for split, part in {"train": rows[:30], "validation": rows[29:31], "test": rows[31:]}.items():
        write(pictures / "raw" / f"{split}.jsonl", part)
    with pytest.raises(SystemExit, match=r"29\.png of the validation split is also in the train split"):
        main(["--dataset_name", str(pictures / "raw"), "--output_dir", str(pictures / "out")])


def test_a_list_decides_which_factors_there_are(pictures, capsys):
    (pictures / "list.json").write_text(json.dumps({"filter_factors": ["image too dark", "blurry photo"]}))
    source = write(pictures / "a.jsonl", annotations())
    main(
        [
            "--dataset_name",
            str(source),
            "--output_dir",
            str(pictures / "out"),
            "--factor_list",
            str(pictures / "list.json"),
        ]
    )
    assert load_factor_set(pictures / "out").ids == ["blurry_photo", "image_too_dark"]
    printed = capsys.readouterr().out
    assert "'has a watermark'" in printed
    assert "dropped 2 texts that mean no factor" in printed


def test_rare_factors_are_dropped_and_named(pictures, capsys):
    rows = annotations()
    rows[0]["filter_factor_texts"].append("lens flare")
    source = write(pictures / "a.jsonl", rows)
    main(["--dataset_name", str(source), "--output_dir", str(pictures / "out"), "--min_count", "2",
          "--train_split", "1", "--val_split", "0", "--test_split", "0"])  # fmt: skip
    assert "dropped 1 rare factors: lens_flare (1 images)" in capsys.readouterr().out
    assert len(load_factor_set(pictures / "out").ids) == 3
    with pytest.raises(SystemExit, match="--min_count 100: no factor is left"):
        main(["--dataset_name", str(source), "--output_dir", str(pictures / "out"), "--min_count", "100"])


def test_images_without_texts_need_to_be_allowed(pictures, capsys):
    source = write(pictures / "a.jsonl", annotations(empty=True))
    with pytest.raises(SystemExit, match=r"a\.jsonl:1: field 'filter_factor_texts': expected at least one text; .*"):
        main(["--dataset_name", str(source), "--output_dir", str(pictures / "out")])
    assert not (pictures / "out").exists()
    main(["--dataset_name", str(source), "--output_dir", str(pictures / "out"), "--allow_empty"])
    factors = load_factor_set(pictures / "out")
    assert any(not record.factors for record in load_labelled(pictures / "out", "train", factors.ids))


GOOD = {"image_path": "images/00.png", "filter_factor_texts": ["too dark"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", r"a\.jsonl:2: column 2: not valid JSON"),
        (b'{"image_path": "\xff"}', r"a\.jsonl:2: not UTF-8 text"),
        (b"[]", r"a\.jsonl:2: field 'the row'"),
        (GOOD | {"image_path": "images/none.png"}, r"a\.jsonl:2: field 'image_path': .*none\.png: no such image file"),
        (GOOD | {"image_path": "broken.png"}, r"a\.jsonl:2: field 'image_path': .*broken\.png: not an image"),
        (GOOD | {"image_path": ""}, r"a\.jsonl:2: field 'image_path'"),
        (GOOD | {"image_path": 3}, r"a\.jsonl:2: field 'image_path': expected a path, bytes or an image \(found 3\)"),
        (GOOD, r"a\.jsonl:2: field 'image_path': .*00\.png is also that of .*a\.jsonl:1"),
        ({"image_path": "images/01.png"}, r"a\.jsonl:2: field 'filter_factor_texts': Field required"),
        (GOOD | {"filter_factor_texts": []}, r"a\.jsonl:2: field 'filter_factor_texts': expected at least one text"),
        (GOOD | {"filter_factor_texts": ["a", " "]}, r"field 'filter_factor_texts': .*texts must not be empty"),
        (GOOD | {"filter_factor_texts": "dark"}, r"a\.jsonl:2: field 'filter_factor_texts': Input should be a valid"),
        (GOOD | {"filter_factor_texts": ["a", 5]}, r"a\.jsonl:2: field 'filter_factor_texts\.1'"),
        (GOOD | {"image_id": 1.5}, r"a\.jsonl:2: field 'image_id"),
        (GOOD | {"labels": []}, r"a\.jsonl:2: field 'labels': Extra inputs are not permitted"),
    ],
)
def test_broken_annotations_are_named(pictures, line, message):
    (pictures / "broken.png").write_bytes(b"no picture")
    second = line if isinstance(line, bytes) else json.dumps(line).encode()
    (pictures / "a.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + second + b"\n")
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(pictures / "a.jsonl"), "--validate_only"])
    import re

    assert re.search(message, str(caught.value))
    *problems, last = str(caught.value).split("\n")
    assert last.startswith("error: ")
    assert last.endswith(f"{counted(len(problems), 'problem')} in {pictures / 'a.jsonl'}")


def test_all_problems_are_listed(pictures, capsys):
    rows = [GOOD | {"image_path": f"images/{number}"} for number in (91, 92, 93)]
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(write(pictures / "a.jsonl", rows)), "--validate_only"])
    assert str(caught.value).count("no such image file") == 3


def test_a_file_without_annotations_is_an_error(pictures):
    (pictures / "a.jsonl").write_text("\n")
    with pytest.raises(SystemExit, match="expected at least one annotation, found none"):
        main(["--dataset_name", str(pictures / "a.jsonl"), "--validate_only"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"filter_factors": []}', "field 'filter_factors': List should have at least 1 item"),
        (b'{"filter_factors": ["a", "  "]}', r"field 'filter_factors\.1': expected a text, found an empty one"),
        (b'{"filter_factors": [1]}', r"field 'filter_factors\.0'"),
        (b'{"factors": ["a"]}', "field 'filter_factors': Field required"),
        (b'["a"]', "field 'the row'"),
        (b"{", "not valid JSON"),
        (b'{"filter_factors": ["\xff"]}', "not UTF-8 text"),
    ],
)
def test_broken_factor_lists_are_named(tmp_path, content, message):
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(RecordError, match=f"list.json.*{message}"):
        load_factor_list(tmp_path / "list.json")
    with pytest.raises(RecordError, match="nothing.json: cannot be read: No such file"):
        load_factor_list(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (["dark", "zoom"], r"train\.jsonl:1: field 'factors': unknown factor 'zoom'; expected some of blurry, dark"),
        ("dark", r"train\.jsonl:1: field 'factors': Input should be a valid list"),
        (None, r"train\.jsonl:1: field 'factors'"),
    ],
)
def test_labelled_images_with_unknown_factors_are_named(pictures, factors, message):
    write(pictures / "train.jsonl", [GOOD | {"factors": factors}])
    with pytest.raises(RecordError, match=message):
        load_labelled(pictures, "train", ["blurry", "dark"])


def test_a_split_without_rows_is_an_error(pictures):
    write(pictures / "train.jsonl", [])
    with pytest.raises(RecordError, match="the train split has no rows"):
        load_labelled(pictures, "train", ["a"])


def test_multi_hot_labels():
    records = [
        LabelledImage(image_path="x", filter_factor_texts=[], factors=factors) for factors in (["c", "a"], [], ["b"])
    ]
    labels = multi_hot(records, ["a", "b", "c"])
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "1.5"], "--threshold: expected a number from -1 to 1, found 1.5"),
        (["--min_count", "0"], "--min_count: expected at least 1, found 0"),
        (["--train_split", "0.5"], "must add up to 1"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(tmp_path / "a.jsonl"), "--output_dir", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_encoder_that_is_not_there_is_named(pictures):
    source = write(pictures / "a.jsonl", annotations())
    with pytest.raises(
        SystemExit, match="error: encoder nowhere/nothing: cannot be loaded as a sentence-transformers"
    ):
        main(["--dataset_name", str(source), "--output_dir", str(pictures / "out"), "--encoder", "nowhere/nothing"])
