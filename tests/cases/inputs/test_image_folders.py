"""Files and entries that are joined by a key: two for one key are an error that names both; hidden files are none."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data import vqa
from data.io.image_folders import files_by_number, image_files
from data.io.image_sources import load_all
from data.io.records import RecordError, read_rows, write_jsonl

QUESTION = {"image_id": 9, "question_id": 9000, "question": "What color?"}
ANNOTATION = {"image_id": 9, "question_id": 9000, "answers": [{"answer": "red"}]}


def _picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)


def _official(folder: Path, questions: list[dict], annotations: list[dict]) -> list[dict]:
    (folder / "q.json").write_text(json.dumps({"questions": questions}))
    (folder / "a.json").write_text(json.dumps({"annotations": annotations}))
    return vqa.official_rows(folder / "q.json", folder / "a.json", folder / "coco")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train2014/COCO_train2014_000000000009.jpg", "masks/000000000009.png"),  # another folder
        ("COCO_train2014_000000000009.jpg", "COCO_train2014_000000000009.png"),  # another ending
        ("COCO_train2014_000000000009.jpg", "COCO_train2014_9.JPG"),  # other zeros, and another case
        ("train/a_9.png", "val/b_9.png"),
    ],
)
def test_f06_two_images_of_one_number_are_an_error_that_names_both(one, other, tmp_path):
    for name in (one, other):
        _picture(tmp_path / "coco" / name)
    with pytest.raises(RecordError) as error:
        _official(tmp_path, [QUESTION], [ANNOTATION])
    [problem] = error.value.problems
    assert f"question 9000: expected one image 9 below {tmp_path}/coco, found 2: " in problem
    assert all(f"{tmp_path}/coco/{name}" in problem for name in (one, other))


@pytest.mark.parametrize(
    "hidden", ["._COCO_train2014_000000000009.jpg", ".thumbs/COCO_9.jpg", "__MACOSX/_9.jpg", ".cache/deep/9.png"]
)
def test_f06_hidden_files_are_no_images(hidden, tmp_path):
    _picture(tmp_path / "coco" / "COCO_train2014_000000000009.jpg")
    (tmp_path / "coco" / hidden).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "coco" / hidden).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    [row] = _official(tmp_path, [QUESTION], [ANNOTATION])
    assert row["image"] == str(tmp_path / "coco" / "COCO_train2014_000000000009.jpg")
    assert len(load_all(str(tmp_path / "coco"))) == 1


def test_f06_a_folder_below_a_hidden_one_is_looked_into(tmp_path):
    _picture(tmp_path / ".data" / "coco" / "1.png")
    assert image_files(tmp_path / ".data" / "coco") == [tmp_path / ".data" / "coco" / "1.png"]


def test_f06_an_image_that_no_question_asks_about_may_have_twins(tmp_path):
    for name in ("a_9.png", "a_7.png", "b_7.png"):
        _picture(tmp_path / "coco" / name)
    assert len(_official(tmp_path, [QUESTION], [ANNOTATION])) == 1


@pytest.mark.parametrize("second", [[{"answer": "777"}], [{"answer": "red"}]])
def test_f06_two_annotations_of_one_question_are_an_error_that_names_both(second, tmp_path):
    _picture(tmp_path / "coco" / "a_9.png")
    other = {**ANNOTATION, "question_id": 1}
    with pytest.raises(RecordError) as error:
        _official(tmp_path, [QUESTION], [ANNOTATION, other, {**ANNOTATION, "answers": second}])
    place = f"{tmp_path}/a.json, annotation 3: field 'question_id'"
    assert error.value.problems == [f"{place}: duplicate 9000, which is also that of annotation 1"]


def test_f06_two_questions_of_one_id_are_an_error_that_names_both(tmp_path):
    _picture(tmp_path / "coco" / "a_9.png")
    with pytest.raises(RecordError) as error:
        _official(tmp_path, [QUESTION, {**QUESTION, "question": "Which shape?"}], [ANNOTATION])
    place = f"{tmp_path}/q.json, question 2: field 'question_id'"
    assert error.value.problems == [f"{place}: duplicate 9000, which is also that of question 1"]


def test_f06_an_annotation_of_another_image_is_an_error(tmp_path):
    _picture(tmp_path / "coco" / "a_9.png")
    with pytest.raises(RecordError, match="about image 9, and its annotation about image 8"):
        _official(tmp_path, [QUESTION], [{**ANNOTATION, "image_id": 8}])


@pytest.mark.parametrize("again", ["0.png", "./0.png", "sub/../0.png"])
def test_f06_two_lines_of_metadata_for_one_file_are_an_error_that_names_both(again, tmp_path):
    _picture(tmp_path / "0.png")
    rows = [{"file_name": "0.png", "question": "What?"}, {"file_name": again, "question": "Who?"}]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    with pytest.raises(RecordError) as error:
        load_all(str(tmp_path))
    path = tmp_path / "metadata.jsonl"
    assert error.value.problems == [f"{path}:2: field 'file_name': duplicate {again!r}, also that of {path}:1"]


def test_f06_metadata_of_a_file_that_is_not_there_is_an_error(tmp_path):
    _picture(tmp_path / "0.png")
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "0.jpg", "question": "What?"}])
    with pytest.raises(RecordError, match=f"metadata.jsonl:1: field 'file_name': no such file: {tmp_path}/0.jpg"):
        load_all(str(tmp_path))


def test_f06_numbers_are_read_from_the_end_of_names():
    paths = [Path(name) for name in ("COCO_val2014_000000262148.jpg", "7.png", "a_b.png", "x_².png", "x_٣.png")]
    assert files_by_number(paths) == {262148: [paths[0]], 7: [paths[1]]}


@pytest.mark.parametrize("endings", [(".jsonl", ".json"), (".json", ".parquet"), (".jsonl", ".parquet")])
def test_f06_two_files_of_one_split_are_an_error_that_names_both(endings, tmp_path):
    for ending in endings:
        (tmp_path / f"train{ending}").write_text("[]")
    expected = " and ".join(f"train{ending}" for ending in endings)
    with pytest.raises(RecordError, match=f"{tmp_path}: expected one file of the train split, found {expected}"):
        read_rows(tmp_path, "train")
