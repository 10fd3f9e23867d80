"""Rows of every kind: null is missing, what no file could hold is refused, and an empty file is an error."""

import json

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from task_rows import (
    CHAT,
    HALF,
    LOADERS,
    PREFERENCE,
    REPORT,
    SCORE,
    SCORED,
    TEN,
    VQA,
    problem_of,
    write,
)

from data import agent_selection
from data.agent_selection import AgentSelectionRecord
from data.io import image_sources
from data.io.json_text import NotJson, parse_json
from data.io.records import Location, Record, RecordError, parse_row, parse_rows, read_rows
from data.preferences import PreferenceRecord, load_preferences
from data.rows.chat import RESERVED, ChatRecord
from data.tasks import load_rows
from data.vqa import VqaRecord
from rewards import eval as rewards_eval
from rewards.benches.reading import load_scored_bench
from rewards.benches.vl_rewardbench import VL_REWARDBENCH
from rewards.preferences.scored import ScoredPreference
from rewards.score import ResponseRow, load_responses
from rewards.scoring.inputs import read_completions
from rollouts.filter_dataset import Report, load_reports

# -- null is missing --------------------------------------------------------------------------------------------------


def test_f01_trl_vision_preferences_with_null_texts_are_read(folder):
    turn = List({"content": List({"text": Value("string"), "type": Value("string")}), "role": Value("string")})
    features = Features({"prompt": turn, "images": List(ImageFeature()), "chosen": turn, "rejected": turn})
    picture = (folder / "img" / "0.png").read_bytes()
    ask = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]}]
    say = {
        side: [{"role": "assistant", "content": [{"type": "text", "text": side}]}] for side in ("chosen", "rejected")
    }
    rows = [{"prompt": ask, "images": [{"bytes": picture, "path": None}], **say}] * 2
    Dataset.from_list(rows, features=features).to_parquet(folder / "p.parquet")
    records, counts = load_preferences(folder / "p.parquet")
    assert (len(records), counts.skipped) == (2, 0)
    assert records[0].prompt() == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert records[0].response == ["chosen", "rejected"]
    assert len(records[0].images) == 1


OPTIONAL = {
    PreferenceRecord: (PREFERENCE, ("id", "images", "image", "margin", "chosen")),
    VqaRecord: ({**VQA, "image": "0.png"}, ("id", "images", "question_type", "answer_type")),
    ChatRecord: (CHAT, ("id", "images", "image_path", "completion", "gold", *RESERVED)),
    ResponseRow: (SCORE, ("prompt", "images")),
    AgentSelectionRecord: (REPORT, ("id", "images", "pool", "metadata", "ground_truth_prompts", "unknown")),
    ScoredPreference: (SCORED, ("margin",)),
    Report: ({"report": "dark", "pool": "p"}, ("id", "images")),
}


@pytest.mark.parametrize(
    ("record_type", "name"), [(kind, name) for kind, (_, names) in OPTIONAL.items() for name in names]
)
def test_f01_null_is_as_good_as_missing(record_type, name):
    row = {key: value for key, value in OPTIONAL[record_type][0].items() if key != name}
    place = Location("a.jsonl", 1)
    without, with_null = parse_row(place, row, record_type), parse_row(place, {**row, name: None}, record_type)
    assert without.model_dump() == with_null.model_dump()


def test_f01_null_in_nested_records_and_required_fields():
    class Inner(Record):
        size: int = 5

    class Outer(Record):
        name: str
        inner: Inner = Inner()
        inners: list[Inner] = []

    place = Location("a.jsonl", 3)
    read = parse_row(place, {"name": "a", "inner": {"size": None}, "inners": [{"size": None}]}, Outer)
    assert (read.inner.size, read.inners[0].size) == (5, 5)
    with pytest.raises(RecordError, match=r"a\.jsonl:3: field 'name': .*\(found None\)"):
        parse_row(place, {"name": None}, Outer)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "what?", "image": None},
        {"type": "text", "text": "what?", "image": None, "index": None},
        {"type": "text", "text": "what?", "video": None},
    ],
)
def test_f01_null_in_parts_and_turns(folder, part):
    turn = {"role": "user", "content": [part], "tool_calls": None, "name": None}
    [row] = load_rows(write(folder / "a.jsonl", {**CHAT, "prompt": [turn]}), "train")
    assert row["prompt"] == [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]


def test_f01_a_null_column_stays_a_column(folder):
    path = write(folder / "a.jsonl", {**CHAT, "answers": None}, {**CHAT, "id": "b"})
    assert [row["answers"] for row in load_rows(path, "train")] == [None, TEN]


# -- halves of characters, and JSON to the letter ---------------------------------------------------------------------

SURROGATES = [
    ("preferences", {"query": HALF}, "query"),
    ("preferences", {"id": HALF}, "id"),
    ("preferences", {"note": [{"deep": HALF}]}, "note.0.deep"),
    ("vqa", {"question": HALF, "image": "img/0.png"}, "question"),
    ("vqa", {"answers": ["red", HALF], "image": "img/0.png"}, "answers.1"),
    ("chat", {"prompt": [{"role": "user", "content": HALF}]}, "prompt.0.content"),
    ("chat", {"metadata": {"a": {"b": HALF}}}, "metadata.a.b"),
    ("score", {"response": HALF}, "response"),
    ("report", {"metadata": {"a": [HALF]}}, "metadata.a.0"),
    ("eval", {"id": HALF}, "id"),
    ("eval", {"completion": "\udc00"}, "completion"),
]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize(("kind", "change", "place"), SURROGATES)
def test_f12_half_a_character_is_refused_at_reading(folder, kind, change, place, ending):
    row, load = LOADERS[kind]
    path = folder / f"a.{ending}"
    rows = [{**row, "id": "first", **({"image": "img/0.png"} if kind == "vqa" else {})}, {**row, **change}]
    path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    where = f"{path}, item 2" if ending == "json" else f"{path}:2"
    assert f"{where}: field '{place}': half of a surrogate pair at character" in problem_of(path, load)


def test_f12_half_a_character_in_a_key():
    with pytest.raises(NotJson, match="field 'a': the key .* holds half of a surrogate pair"):
        parse_json(b'{"a": {"x\\ud800": 1}}')
    assert parse_json(b'{"a\\ud83d\\ude00": "\\ud83d\\ude00"}') == {"a\U0001f600": "\U0001f600"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"id": 1, "id": 2}', "duplicate key 'id' in one object"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate key 'b'"),
        (b'{"a": NaN}', "field 'a': expected a finite number"),
        (b'{"a": [-Infinity]}', "field 'a.0': expected a finite number"),
        (b'{"a": 1e999}', "field 'a': expected a finite number"),
        ('{"a": "\udc80"}'.encode("utf-8", "surrogatepass"), "not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_f12_what_no_file_could_hold_again_is_not_read(content, problem):
    with pytest.raises(NotJson, match=problem):
        parse_json(content)


def test_f12_byte_order_marks_and_line_ends_of_windows_are_read(folder):
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(VQA).encode() + b"\r\n\r\n")
    assert [row for _, row in read_rows(folder / "a.jsonl")] == [VQA]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.txt"])
def test_f12_other_formats_are_named(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(RecordError, match="cannot tell the format"):
        read_rows(folder / name)


# -- sources of reports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "what?", "answers": [{"confidence": "yes"}]}, "field 'answers': item 0: expected a text"),
        ({"question": 5}, "field 'question': Input should be a valid string"),
        ({"question": "what?", "answer": 7}, "field 'answer': expected a text"),
        ({"question": ["what?"]}, "field 'question': Input should be a valid string"),
        ({"multiple_choice_answer": {"label": 1}}, "field 'multiple_choice_answer': expected a text"),
    ],
)
def test_f18_texts_of_other_types_name_the_row(folder, row, problem):
    write(folder / "img" / "metadata.jsonl", {"file_name": "0.png", **row})
    with pytest.raises(RecordError) as caught:
        image_sources.load_all(str(folder / "img"))
    assert f"metadata.jsonl:1: {problem}" in str(caught.value)


def test_f18_answers_under_text_are_read(folder):
    write(folder / "img" / "metadata.jsonl", {"file_name": "0.png", "question": "what?", "answers": [{"text": "red"}]})
    first, second = image_sources.load_all(str(folder / "img"))
    assert (first.question, first.answers, second.answers) == ("what?", ("red",), ())


@pytest.mark.parametrize(
    ("column", "feature", "values", "problem"),
    [
        ("question", "string", ["a", "b", "c"], "row 2: field 'image': expected an image, found null"),
        ("question", "int64", [1, 2, 3], "row 1: field 'question': Input should be a valid string"),
        ("answer", "float64", [0.5, 0.5, 0.5], "row 1: field 'answer': expected a text"),
    ],
)
def test_f18_saved_data_sets_name_the_row(folder, column, feature, values, problem):
    content = {"bytes": (folder / "img" / "0.png").read_bytes(), "path": None}
    rows = [{"image": None if number == 1 else content, column: value} for number, value in enumerate(values)]
    features = Features({"image": ImageFeature(), column: Value(feature)})
    Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    with pytest.raises(RecordError) as caught:
        image_sources.load_all(str(folder / "saved"))
    assert problem in str(caught.value)


# -- empty input ------------------------------------------------------------------------------------------------------

READERS = {
    "preferences": load_preferences,
    "score": lambda path: load_responses(path, "test"),
    "scored preferences": lambda path: load_scored_bench(VL_REWARDBENCH, path),
    "eval": lambda path: read_completions(str(path), "test"),
    "tasks": lambda path: load_rows(path, "train"),
    "reports": lambda path: load_reports(str(path), "test"),
}


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
@pytest.mark.parametrize("kind", READERS)
def test_n05_an_empty_file_is_an_error(folder, kind, content):
    path = folder / ("a.json" if content == "[]" else "a.jsonl")
    path.write_text(content)
    problem = problem_of(path, READERS[kind])
    assert str(path) in problem
    assert "no rows" in problem or "no preferences" in problem


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_n05_commands_end_with_an_error(folder, content):
    (folder / "a.jsonl").write_text(content)
    path, output = str(folder / "a.jsonl"), str(folder / "out")
    with pytest.raises(SystemExit, match="error: .*a.jsonl: has no rows"):
        rewards_eval.main(["--dataset_name", path, "--rewards", "xml_format", "--output_dir", output])
    with pytest.raises(SystemExit, match="error: "):
        agent_selection.main(["--dataset_name", path, "--output_dir", output])
    assert not (folder / "out").exists()


def test_all_problems_of_a_file_fit_on_a_screen(folder):
    rows = [{**VQA, "question": ["x" * 500], "answers": [1] * 50} for _ in range(100)]
    with pytest.raises(RecordError) as caught:
        parse_rows(read_rows(write(folder / ("a" * 200 + ".jsonl"), *rows)), VqaRecord)
    assert len(caught.value.problems) == 300
    assert len(str(caught.value)) < 2000
    assert "more problems" in str(caught.value)
