"""Reading completions from files of every kind, with errors that name line and field."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.io.records import RecordError
from rewards.base import completion_text
from rewards.scoring.inputs import read_completions

MESSAGES = [{"role": "assistant", "content": "yes"}]
ROWS = [{"id": 1, "completion": "no"}, {"id": 2, "completion": "yes"}]


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems_of(source: str) -> list[str]:
    with pytest.raises(RecordError) as caught:
        read_completions(source, "test")
    return caught.value.problems


def test_jsonl(tmp_path):
    assert read_completions(write(tmp_path / "c.jsonl", ROWS), "test") == ROWS


def test_json(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert read_completions(str(tmp_path / "c.json"), "test") == ROWS


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    assert read_completions(str(tmp_path / "c.parquet"), "test") == ROWS


def test_parquet_of_messages(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"completion": MESSAGES}]), tmp_path / "c.parquet")
    [row] = read_completions(str(tmp_path / "c.parquet"), "test")
    assert completion_text(row["completion"]) == "yes"


def test_a_split_of_a_folder(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:1])
    write(tmp_path / "test.jsonl", ROWS[1:])
    assert read_completions(str(tmp_path), "test") == ROWS[1:]


def test_paths_start_at_the_file(tmp_path):
    row = {"completion": "x", "pool": "pools/a", "images": ["b.png", "/images/c.png"]}
    [read] = read_completions(write(tmp_path / "deep" / "c.jsonl", [row]), "test")
    assert read["pool"] == str(tmp_path / "deep" / "pools" / "a")
    assert read["images"] == [str(tmp_path / "deep" / "b.png"), "/images/c.png"]


def test_a_pool_may_be_null(tmp_path):
    [read] = read_completions(write(tmp_path / "c.jsonl", [{"completion": "x", "pool": None}]), "test")
    assert read["pool"] is None


def test_every_problem_is_listed_with_its_line(tmp_path):
    path = tmp_path / "c.jsonl"
    lines = ['{"completion": "fine"}', '{"completion": 3}', '{"text": "x", "id": 1}', "[1]", '{"completion": ', ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    problems = problems_of(str(path))
    assert problems[:3] == [
        f"{path}:2: field 'completion': expected a text or chat messages, found 3",
        f"{path}:3: field 'completion': expected a text or chat messages, found only id, text",
        f"{path}:4: expected an object",
    ]
    assert problems[3].startswith(f"{path}:5: column ")
    assert "not valid JSON" in problems[3]
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("c.jsonl", b'{"completion": "\xff"}\n', "c.jsonl:1: not UTF-8 text"),
        ("c.json", b'{"completion": "x"}', "c.json: expected a JSON list of objects, found dict"),
        ("c.json", b"[1,", "c.json:1: column 4: not valid JSON"),
        ("c.csv", b"completion\nx\n", "c.csv: cannot tell the format from the ending '.csv'; expected .jsonl, .json"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    [found] = problems_of(str(tmp_path / name))
    assert problem in found


def test_a_file_that_does_not_exist(tmp_path):
    assert problems_of(str(tmp_path / "c.jsonl")) == [f"{tmp_path / 'c.jsonl'}: no such file or folder"]


def test_a_split_that_does_not_exist(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    [problem] = problems_of(str(tmp_path))
    assert "found none of test.jsonl, test.json, test.parquet" in problem


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("yes", "yes"),
        (MESSAGES, "yes"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "b"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], ""),
        ([{"role": "assistant", "content": []}], ""),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_the_text_of_a_completion(completion, text):
    assert completion_text(completion) == text
