"""Where images come from: easy-VQA, folders and data sets; no picture stands in two splits."""

import hashlib
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from data.io.image_sources import SourceItem, load_all, load_splits
from data.io.records import RecordError

SHARES = (0.6, 0.2, 0.2)


def _picture(number: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (number, 0, 0))


def _content(item: SourceItem) -> str:
    content = item.image["bytes"] if isinstance(item.image, dict) else Path(item.image).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _assert_no_picture_in_two_splits(splits: dict[str, list[SourceItem]]) -> None:
    contents = [{_content(item) for item in items} for items in splits.values()]
    assert all(contents)
    assert sum(map(len, contents)) == len(set.union(*contents))


def test_easy_vqa_has_all_its_questions():
    items = load_all("easy_vqa")
    assert len(items) == 48_248
    assert len({item.image for item in items}) == 5_000
    assert all(item.question.endswith("?") and len(item.answers) == 1 for item in items)


def test_easy_vqa_is_divided_by_picture_and_keeps_its_own_test_pictures():
    splits = load_splits("easy_vqa", (0.75, 0.125, 0.125), seed=3)
    images = {split: {item.image for item in items} for split, items in splits.items()}
    # 4,000 training pictures divided 6 : 1, and 1,000 for testing
    assert {split: len(paths) for split, paths in images.items()} == {"train": 3429, "validation": 571, "test": 1000}
    assert sum(map(len, splits.values())) == 48_248
    assert not images["train"] & images["validation"]
    hashes = [{hashlib.sha256(Path(path).read_bytes()).digest() for path in paths} for paths in images.values()]
    assert len(set.union(*hashes)) == 5_000


def test_easy_vqa_without_validation_trains_on_everything():
    splits = load_splits("easy_vqa", (0.9, 0.0, 0.1), seed=0)
    assert len({item.image for item in splits["train"]}) == 4_000
    assert splits["validation"] == []


@pytest.fixture
def folder(tmp_path) -> Path:
    """30 pictures in two folders, each of the first ten twice under another name."""
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for number in range(30):
        place = "more" if number % 2 else "."
        _picture(number).save(tmp_path / "pictures" / place / f"{number:02d}.png")
        if number < 10:
            _picture(number).save(tmp_path / "pictures" / f"copy_of_{number}.PNG")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_a_folder_gives_every_image_below_it(folder):
    items = load_all(str(folder))
    assert len(items) == 40
    assert all(Path(item.image).is_absolute() for item in items)
    assert {(item.question, item.answers) for item in items} == {("", ())}


def test_a_folder_takes_texts_from_its_metadata(folder):
    rows = [
        {"file_name": "00.png", "question": "What\u2028colour?", "answer": "black"},
        {"file_name": "more/01.png", "question": "And this?", "answers": ["dark", "red"]},
        {"file_name": "02.png", "question": "Official?", "answers": [{"answer": "yes"}, {"answer": "no"}]},
        {"file_name": "more/03.png", "question": None},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    texts = {
        str(Path(item.image).relative_to(folder)): (item.question, item.answers) for item in load_all(str(folder))
    }
    assert texts["00.png"] == ("What\u2028colour?", ("black",))
    assert texts["more/01.png"] == ("And this?", ("dark", "red"))
    assert texts["02.png"] == ("Official?", ("yes", "no"))
    assert texts["more/03.png"] == texts["04.png"] == ("", ())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", ":2: column 2: not valid JSON"),
        ('{"question": "What?"}', ":2: field 'file_name': Field required (found missing)"),
        ('{"file_name": "00.png", "question": 5}', ":2: field 'question': Input should be a valid string (found 5)"),
    ],
)
def test_malformed_metadata_is_named(folder, line, problem):
    metadata = folder / "metadata.jsonl"
    metadata.write_text('{"file_name": "00.png"}\n' + line)
    with pytest.raises(RecordError) as caught:
        load_all(str(folder))
    assert str(caught.value).startswith(f"{metadata}{problem}")


def test_copies_in_a_folder_stay_in_one_split(folder):
    splits = load_splits(str(folder), SHARES, seed=0)
    assert sum(map(len, splits.values())) == 40
    _assert_no_picture_in_two_splits(splits)


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RecordError) as caught:
        load_all(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: found no images below it (endings .png, .jpg")


def _vqa_rows(pictures: int, questions: int) -> dict:
    numbers = [number for number in range(pictures) for _ in range(questions)]
    return {
        "picture": [_picture(number) for number in numbers],
        "question": [f"Question {index}?" for index in range(len(numbers))],
        "answers": [[str(number), "0"] for number in numbers],
    }


FEATURES = Features({"picture": ImageFeature(), "question": Value("string"), "answers": List(Value("string"))})


def test_a_saved_data_set_gives_images_and_texts_of_all_its_splits(tmp_path):
    part = Dataset.from_dict(_vqa_rows(3, 1), features=FEATURES)
    DatasetDict({"train": part, "extra": part}).save_to_disk(tmp_path / "set")
    items = load_all(str(tmp_path / "set"))
    assert [(item.question, item.answers) for item in items[:3]] == [
        ("Question 0?", ("0", "0")),
        ("Question 1?", ("1", "0")),
        ("Question 2?", ("2", "0")),
    ]
    assert len(items) == 6


def test_questions_about_one_picture_of_a_data_set_stay_in_one_split(tmp_path):
    Dataset.from_dict(_vqa_rows(30, 4), features=FEATURES).save_to_disk(tmp_path / "set")
    splits = load_splits(str(tmp_path / "set"), SHARES, seed=0)
    assert {split: len(items) for split, items in splits.items()} == {"train": 72, "validation": 24, "test": 24}
    _assert_no_picture_in_two_splits(splits)


def test_the_seed_decides_the_splits(folder):
    first, again, other = (load_splits(str(folder), SHARES, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_data_set_without_images_is_an_error_that_names_its_columns(tmp_path):
    Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(tmp_path / "set")
    with pytest.raises(RecordError, match="no image column among text, label"):
        load_all(str(tmp_path / "set"))


def test_an_unknown_source_is_an_error_that_says_what_there_is(tmp_path):
    with pytest.raises(RecordError, match="--source .*: not easy_vqa, no folder of images, no data set: "):
        load_all(str(tmp_path / "nothing"))
