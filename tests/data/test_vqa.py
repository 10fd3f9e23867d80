"""Records of visual question answering, in their own form and in that of the official files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data.io.records import RecordError
from data.vqa import VqaRecord, common_answer, load_records, main, official_rows, record_ids

RECORD = {"image": "red.png", "question": "What colour?", "answers": ["red", "red", "pink"]}


@pytest.fixture(autouse=True)
def red(tmp_path) -> Path:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def _problems(path) -> list[str]:
    with pytest.raises(RecordError) as caught:
        load_records(path)
    return caught.value.problems


@pytest.mark.parametrize(
    "images", [{"image": "red.png"}, {"images": ["red.png"]}, {"images": None, "image": "red.png"}]
)
def test_one_image_may_stand_alone_or_in_a_list(write_lines, red, images):
    row = {"question": "What colour?", "answers": ["red"], **images}
    (record,) = load_records(write_lines("a.jsonl", row))
    assert record.images == [str(red)]


def test_answers_may_be_texts_or_the_official_objects(write_lines):
    objects = [{"answer": "red", "answer_id": 1, "answer_confidence": "yes"}, {"answer": "pink", "answer_id": 2}]
    first, second = load_records(write_lines("a.jsonl", RECORD, {**RECORD, "answers": objects}))
    assert first.answers == ["red", "red", "pink"]
    assert second.answers == ["red", "pink"]


def test_further_fields_are_passed_over(write_lines):
    (record,) = load_records(write_lines("a.jsonl", {**RECORD, "id": 5, "difficulty": 3, "answer_type": "other"}))
    assert (record.id, record.answer_type, record.question_type) == (5, "other", None)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"question": ""}, "field 'question': String should have at least 1 character (found '')"),
        ({"question": 5}, "field 'question': Input should be a valid string (found 5)"),
        ({"answers": []}, "field 'answers': List should have at least 1 item after validation, not 0 (found [])"),
        (
            {"answers": 7},
            "field 'answers': expected a text, a list of texts, or objects with 'answer' or 'text' (found 7)",
        ),
        ({"answers": ["red", 1]}, "field 'answers': item 1: expected a text, a list of texts"),
        ({"answers": [{"id": "red"}]}, "field 'answers': item 0: expected a text, a list of texts"),
        ({"image": None}, "field 'images': List should have at least 1 item after validation, not 0 (found [])"),
        ({"image": []}, "field 'images': List should have at least 1 item after validation, not 0 (found [])"),
        ({"image": ["red.png"] * 5}, "field 'images': List should have at most 4 items after validation, not 5"),
    ],
)
def test_a_malformed_record_names_line_and_field(write_lines, fields, problem):
    path = write_lines("a.jsonl", RECORD, {**RECORD, **fields})
    (found,) = _problems(path)
    assert found.startswith(f"{path}:2: {problem}")


def test_missing_images_and_malformed_rows_are_all_named(write_lines, tmp_path):
    path = write_lines("a.jsonl", {**RECORD, "image": "blue.png"}, {**RECORD, "question": ""}, RECORD)
    assert sorted(_problems(path)) == [
        f"{path}:1: field 'images': {tmp_path / 'blue.png'}: no such image file",
        f"{path}:2: field 'question': String should have at least 1 character (found '')",
    ]


QUESTIONS = [
    {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
    {"image_id": 9, "question": "What colour?", "question_id": 9001},
]
ANNOTATIONS = [
    {
        "question_id": 9001,
        "image_id": 9,
        "question_type": "what color",
        "answer_type": "other",
        "multiple_choice_answer": "red",
        "answers": [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
    },
    {"question_id": 262148000, "answers": [{"answer": "down", "raw_answer": "downwards"}, {"answer": "at table"}]},
]


@pytest.fixture
def official(tmp_path):
    """Function: entries of both files -> paths of questions, annotations and images."""
    (tmp_path / "val2014").mkdir()
    for name in ("COCO_val2014_000000262148.jpg", "COCO_val2014_000000000009.jpg", "readme.jpg"):
        Image.new("RGB", (16, 16)).save(tmp_path / "val2014" / name)

    def write(questions=QUESTIONS, annotations=ANNOTATIONS) -> tuple[Path, Path, Path]:
        (tmp_path / "Q.json").write_text(json.dumps({"info": {}, "questions": questions}))
        (tmp_path / "A.json").write_text(json.dumps({"license": {}, "annotations": annotations}))
        return tmp_path / "Q.json", tmp_path / "A.json", tmp_path / "val2014"

    return write


def test_official_files_are_joined_by_question_and_image(official):
    questions, annotations, images = official()
    assert official_rows(questions, annotations, images) == [
        {
            "id": 262148000,
            "image": str(images / "COCO_val2014_000000262148.jpg"),
            "question": "Where is he looking?",
            "answers": ["down", "at table"],
            "question_type": None,
            "answer_type": None,
        },
        {
            "id": 9001,
            "image": str(images / "COCO_val2014_000000000009.jpg"),
            "question": "What colour?",
            "answers": ["red"] * 10,
            "question_type": "what color",
            "answer_type": "other",
        },
    ]


def test_what_official_files_lack_is_named(official):
    lacking = [{**QUESTIONS[0], "image_id": 5}, *QUESTIONS[1:], {**QUESTIONS[0], "question_id": 7}]
    questions, annotations, images = official(lacking)
    with pytest.raises(RecordError) as caught:
        official_rows(questions, annotations, images)
    assert caught.value.problems == [
        f"{questions}: question 262148000: no image 5 below {images}",
        f"{questions}: question 7: no annotation",
    ]


@pytest.mark.parametrize(
    ("questions", "annotations", "problem"),
    [
        ([{"image_id": 9, "question": "?"}], ANNOTATIONS, "Q.json, question 1: field 'question_id': Field required"),
        ([{**QUESTIONS[0], "question": 5}], ANNOTATIONS, "Q.json, question 1: field 'question': Input should be a"),
        (QUESTIONS, [{"question_id": 7}], "A.json, annotation 1: field 'answers': Field required (found missing)"),
        (QUESTIONS, [{"question_id": 7, "answers": []}], "A.json, annotation 1: field 'answers': List should have"),
        (QUESTIONS, [{"question_id": 7, "answers": ["a"]}], "A.json, annotation 1: field 'answers.0': Input should"),
        ({"not": "a list"}, ANNOTATIONS, "Q.json: field 'questions': expected a JSON object with this list, found"),
    ],
)
def test_malformed_official_entries_name_file_entry_and_field(official, tmp_path, questions, annotations, problem):
    with pytest.raises(RecordError) as caught:
        official_rows(*official(questions, annotations))
    assert str(caught.value).startswith(f"{tmp_path / problem}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, ": cannot be read: No such file or directory"),
        (b"{", ":1: column 2: not valid JSON: Expecting property name"),
        (b'{"questions": "\xff"}', ":1: not UTF-8 text: invalid start byte at byte 15 of the line"),
        (b"[]", ": field 'questions': expected a JSON object with this list, found []"),
    ],
)
def test_an_unreadable_official_file_is_named(official, content, problem):
    questions, annotations, images = official()
    questions.unlink()
    if content is not None:
        questions.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        official_rows(questions, annotations, images)
    assert str(caught.value).startswith(f"{questions}{problem}")


def test_the_command_writes_official_files_as_records(official, tmp_path):
    questions, annotations, images = official()
    files = ["--questions", str(questions), "--annotations", str(annotations), "--image_dir", str(images)]
    main([*files, "--split", "validation", "--output_dir", str(tmp_path / "out")])
    records = load_records(tmp_path / "out", "validation")
    assert [(record.id, len(record.answers)) for record in records] == [(262148000, 2), (9001, 10)]


def test_the_command_says_which_official_file_is_missing(official, tmp_path):
    questions, annotations, images = official()
    annotations.unlink()
    files = ["--questions", str(questions), "--annotations", str(annotations), "--image_dir", str(images)]
    with pytest.raises(SystemExit, match="error: .*A.json: cannot be read: No such file"):
        main([*files, "--output_dir", str(tmp_path / "out")])


def test_the_command_writes_easy_vqa_with_as_many_records_as_wanted(tmp_path, capsys):
    main(["--source", "easy_vqa", "--output_dir", str(tmp_path / "out"), "--limit", "5"])
    images = set()
    for split in ("train", "validation", "test"):
        records = load_records(tmp_path / "out", split)
        assert len(records) == 5
        assert not images & {record.images[0] for record in records}
        images |= {record.images[0] for record in records}
    assert capsys.readouterr().out.count("5 records written to ") == 3


@pytest.mark.parametrize("arguments", [[], ["--questions", "Q.json"], ["--source", "coco"]])
def test_the_command_asks_for_one_complete_source(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--output_dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert "give --source easy_vqa, or all of --questions" in message or "invalid choice: 'coco'" in message


def test_easy_vqa_answers_can_earn_full_accuracy(tmp_path):
    """Its one answer a question counts as ten annotators', or the official rule would never give a point."""
    from rewards.registry import build_reward

    main(["--source", "easy_vqa", "--output_dir", str(tmp_path), "--limit", "5"])
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row["answers"] for row in rows]
    assert [len(given) for given in answers] == [10] * 5
    assert build_reward("vqa_accuracy")([given[0] for given in answers], answers=answers) == [1.0] * 5


def make_record(**fields) -> VqaRecord:
    return VqaRecord.model_validate({"question": "q", "answers": ["a"], "image": "a.png", **fields})


def test_the_common_answer_is_the_most_frequent_and_the_first_of_equals():
    assert common_answer(make_record(answers=["x", "red", "blue", "blue", "red"])) == "red"
    assert common_answer(make_record(answers=[{"answer": "x"}])) == "x"


def test_records_without_an_id_go_by_their_position():
    assert record_ids([make_record(id="a"), make_record(), make_record(id="2"), make_record()]) == ["a", 1, "2", 3]
    with pytest.raises(RecordError, match="record 2: field 'id': 1 is record 1's id too"):
        record_ids([make_record(id=1), make_record()])
