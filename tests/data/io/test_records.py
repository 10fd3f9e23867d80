"""Reading rows of every format, errors that say where and what, and files that are never half-written."""

import json
import pickle

import pytest
from datasets import Dataset, DatasetDict
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from data.io.records import (
    Location,
    Malformed,
    RecordError,
    atomic_write,
    base_folder,
    parse_row,
    parse_rows,
    read_rows,
    write_json,
    write_jsonl,
)

ROWS = [{"name": "first", "size": 1}, {"name": "zweite – ü", "size": 2}]


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: StrictStr
    size: StrictInt


def _as_jsonl(folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def _as_json(folder):
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def _as_parquet(folder):
    path = folder / "rows.parquet"
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def _as_dataset(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def _as_dataset_dict(folder):
    parts = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    DatasetDict(parts).save_to_disk(folder / "saved")
    return folder / "saved"


def _as_folder_of_jsonl(folder):
    _as_jsonl(folder).rename(folder / "train.jsonl")
    return folder


def _as_folder_of_parquet(folder):
    _as_parquet(folder).rename(folder / "train.parquet")
    return folder


FORMS = [_as_jsonl, _as_json, _as_parquet, _as_dataset, _as_dataset_dict, _as_folder_of_jsonl, _as_folder_of_parquet]


@pytest.mark.parametrize("write", FORMS)
def test_every_format_gives_the_same_rows(tmp_path, write):
    assert parse_rows(read_rows(write(tmp_path)), Thing) == [Thing(**row) for row in ROWS]


class SmallThing(BaseModel):
    name: str
    size: int = Field(lt=2)


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (_as_jsonl, "rows.jsonl:2"),
        (_as_json, "rows.json, item 2"),
        (_as_parquet, "rows.parquet, row 2"),
        (_as_dataset, "saved, row 2"),
    ],
)
def test_every_format_says_where_a_problem_stands(tmp_path, write, place):
    with pytest.raises(RecordError) as caught:
        parse_rows(read_rows(write(tmp_path)), SmallThing)
    assert caught.value.problems == [f"{tmp_path / place}: field 'size': Input should be less than 2 (found 2)"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"name": "a", "size": 1', "column 24: not valid JSON: Expecting ',' delimiter (found '"),
        (b"{'name': 'a'}", "column 2: not valid JSON: Expecting property name enclosed in double quotes (found "),
        (b'{"name": "a\xff", "size": 1}', "not UTF-8 text: invalid start byte at byte 11 of the line"),
        (b'{"name": "a", "size": ' + b"9" * 5000 + b"}", "not readable as JSON: Exceeds the limit (4300 digits)"),
        (b"[" * 200_000, "not readable as JSON: maximum recursion depth exceeded"),
        (b'{"name": "a", "size": "1"}', "field 'size': Input should be a valid integer (found '1')"),
        (b'{"name": "a", "size": 1.5}', "field 'size': Input should be a valid integer (found 1.5)"),
        (b'{"name": 3, "size": 1}', "field 'name': Input should be a valid string (found 3)"),
        (b'{"name": "a"}', "field 'size': Field required (found missing)"),
        (b'{"name": "a", "size": 1, "color": "red"}', "field 'color': Extra inputs are not permitted (found 'red')"),
        (b'["a", 1]', "field 'the row': Input should be a valid dictionary or instance of Thing (found ['a', 1])"),
    ],
)
def test_a_malformed_line_is_named_with_what_was_found(write_lines, line, problem):
    path = write_lines("rows.jsonl", ROWS[0], line)
    with pytest.raises(RecordError) as caught:
        parse_rows(read_rows(path), Thing)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}:2: {problem}")


def test_all_problems_of_all_lines_are_listed(write_lines):
    path = write_lines("rows.jsonl", b"{", ROWS[0], {"name": 1, "size": "x"}, {})
    with pytest.raises(RecordError) as caught:
        parse_rows(read_rows(path), Thing)
    places = [problem.split(": not valid")[0].split(": ", 1) for problem in caught.value.problems]
    assert [place for place, *_ in places] == [f"{path}:{line}" for line in (1, 3, 3, 4, 4)]
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_a_message_shows_twenty_problems_and_counts_the_rest():
    error = RecordError([f"problem {number}" for number in range(23)])
    assert str(error).splitlines() == [*(f"problem {number}" for number in range(20)), "... and 3 more problems"]


def test_a_long_value_is_shortened(write_lines):
    path = write_lines("rows.jsonl", {"name": ["x" * 500], "size": 1})
    with pytest.raises(RecordError) as caught:
        parse_rows(read_rows(path), Thing)
    assert len(caught.value.problems[0]) < len(str(path)) + 200
    assert caught.value.problems[0].endswith("xxx...)")


def test_empty_lines_are_passed_over_and_counted(write_lines):
    path = write_lines("rows.jsonl", b"", ROWS[0], b"  ", ROWS[1])
    assert [(location.number, row) for location, row in read_rows(path)] == [(2, ROWS[0]), (4, ROWS[1])]


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path):
    rows = [{"name": "a\u2028b\u0085c\r", "size": 1}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [row for _, row in read_rows(tmp_path / "rows.jsonl")] == rows


def test_errors_survive_the_way_back_from_a_worker_process():
    error = RecordError(["a.jsonl:1: first", "a.jsonl:2: second"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems) == (str(error), error.problems)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.json", b'{"name": "a"}', ": expected a JSON list of objects, found dict"),
        ("rows.json", b'[{"name": "a"},\n{"name": }]', ":2: column 10: not valid JSON: Expecting value"),
        ("rows.json", b'["\xff"]', ":1: not UTF-8 text: invalid start byte at byte 2"),
        ("rows.json", b"9" * 5000, ": not readable as JSON: Exceeds the limit (4300 digits)"),
        ("rows.csv", b"a,b", ": cannot tell the format from the ending '.csv'; expected .jsonl, .json, .parquet"),
        ("rows.parquet", b"not parquet", ": not readable as parquet: "),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing", "some/missing.parquet", "./a"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError) as caught:
        read_rows(name)
    assert caught.value.problems == [f"{name}: no such file or folder"]


def test_a_data_set_that_the_hub_does_not_give_is_named():
    with pytest.raises(RecordError, match=r"^nobody/nothing: no such file or folder here, and as a Hub data set"):
        read_rows("nobody/nothing")


def test_a_folder_without_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(RecordError) as caught:
        read_rows(tmp_path, "validation")
    expected = "found none of validation.jsonl, validation.json, validation.parquet, and no saved data set"
    assert str(caught.value).startswith(f"{tmp_path}: {expected}")


def test_a_missing_split_of_a_saved_data_set_is_named_with_those_it_has(tmp_path):
    folder = _as_dataset_dict(tmp_path)
    with pytest.raises(RecordError) as caught:
        read_rows(folder, "validation")
    assert caught.value.problems == [f"{folder}: no split 'validation'; it has train, test"]


def test_a_broken_saved_data_set_is_named(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(RecordError) as caught:
        read_rows(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: not readable as a saved data set: ")


def test_the_split_chooses_the_part_of_a_saved_data_set(tmp_path):
    assert [row for _, row in read_rows(_as_dataset_dict(tmp_path), "test")] == ROWS[:1]


def test_parse_row_raises_for_a_malformed_row_at_its_place():
    with pytest.raises(RecordError) as caught:
        parse_row(Location("rows.jsonl", 7), Malformed("broken"), Thing)
    assert caught.value.problems == ["rows.jsonl:7: broken"]


def test_relative_paths_start_at_the_file_or_the_folder(tmp_path):
    path = _as_jsonl(tmp_path)
    assert base_folder(path) == base_folder(tmp_path) == tmp_path.resolve()


def test_atomic_write_replaces_the_file_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("ü")
        assert not path.exists()
    assert path.read_bytes() == "ü".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_leaves_the_old_file_when_the_block_raises(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_cannot_be_written_leave_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "rows.jsonl", [{"name": "a"}, {"name": object()}])
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_as_readable_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"name": "ü"}, indent=None)
    assert (tmp_path / "a.json").read_bytes() == '{"name": "ü"}\n'.encode()
