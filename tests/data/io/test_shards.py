"""Rows of long work survive killing; settings, missing rows and concurrent runs are errors."""

import json
import os

import pytest

from data.io.records import RecordError
from data.io.shards import ShardStore, work_folder

SETTINGS = {"model": "tiny", "shots": 2}
IDS = ["a", 1, "1", "with space", 7]


def _row(row_id) -> dict:
    return {"id": row_id, "text": f"é of {row_id}"}


def _fill(folder, ids=IDS) -> None:
    with ShardStore(folder, SETTINGS) as store:
        for row_id in ids:
            if row_id not in store.done:
                store.append(_row(row_id))


def _merged(folder, output) -> bytes:
    with ShardStore(folder, SETTINGS) as store:
        store.merge(output, IDS)
    return output.read_bytes()


@pytest.fixture
def undisturbed(tmp_path) -> bytes:
    _fill(tmp_path / "undisturbed")
    return _merged(tmp_path / "undisturbed", tmp_path / "undisturbed.jsonl")


def test_the_merged_file_has_each_row_once_in_the_given_order(undisturbed):
    assert [json.loads(line) for line in undisturbed.splitlines()] == [_row(row_id) for row_id in IDS]


def test_a_file_cut_at_any_byte_is_continued_to_the_same_result(tmp_path, undisturbed):
    _fill(tmp_path / "whole")
    whole = (tmp_path / "whole" / "shard-00000.jsonl").read_bytes()
    for end in range(len(whole)):
        folder = tmp_path / f"cut{end}"
        _fill(folder, [])
        (folder / "shard-00000.jsonl").write_bytes(whole[:end])
        with ShardStore(folder, SETTINGS) as store:
            assert len(store.done) == whole[:end].count(b"\n")
        _fill(folder)
        assert _merged(folder, tmp_path / "cut.jsonl") == undisturbed


def test_rows_of_processes_that_are_no_more_count(tmp_path, undisturbed):
    folder = tmp_path / "shrunk"
    _fill(folder, [])
    (folder / "shard-00003.jsonl").write_text(json.dumps(_row(1), ensure_ascii=False) + '\n{"id": "a", "te')
    with ShardStore(folder, SETTINGS) as store:
        assert store.done == {1}
    _fill(folder)
    assert _merged(folder, tmp_path / "shrunk.jsonl") == undisturbed


def test_filling_makes_what_is_missing_of_a_chunk_as_a_whole_and_merges(tmp_path, undisturbed):
    output = tmp_path / "filled.jsonl"
    asked = []

    def rows_of(chunk):
        asked.append(chunk)
        return map(_row, chunk)

    _fill(work_folder(output), ["a", 1, "with space"])
    with ShardStore(work_folder(output), SETTINGS) as store:
        store.fill(output, IDS, rows_of, size=2)
    assert asked == [["1", "with space"], [7]]
    assert output.read_bytes() == undisturbed


def test_what_was_made_before_an_error_is_not_made_again(tmp_path):
    output = tmp_path / "filled.jsonl"

    def failing(chunk):
        yield _row(chunk[0])
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), ShardStore(work_folder(output), SETTINGS) as store:
            store.fill(output, IDS, failing)
    with ShardStore(work_folder(output), SETTINGS) as store:
        assert store.done == set(IDS[:2])
    assert not output.exists()


def test_chunks_are_whole_where_a_row_of_them_is_missing(tmp_path):
    with ShardStore(tmp_path / "chunks", SETTINGS) as store:
        store.append(_row("a"))
        store.append(_row("1"))
        store.append(_row("with space"))
        assert store.chunks(IDS, 2) == [["a", 1], [7]]


def test_other_settings_are_refused_and_named(tmp_path):
    _fill(tmp_path / "rows")
    with (
        pytest.raises(
            RecordError, match=r"settings.json: field 'shots': the rows there were made with 2, now it is 3"
        ),
        ShardStore(tmp_path / "rows", {**SETTINGS, "shots": 3}),
    ):
        pass
    with (
        pytest.raises(RecordError, match=r"field 'seed': the rows there were made with None, now it is 0"),
        ShardStore(tmp_path / "rows", {**SETTINGS, "seed": 0}),
    ):
        pass


def test_missing_rows_are_an_error_and_nothing_is_written(tmp_path):
    with ShardStore(tmp_path / "rows", SETTINGS) as store:
        store.append(_row("a"))
        with pytest.raises(RecordError, match=r"4 of 5 rows are missing: 1, '1', 'with space', 7"):
            store.merge(tmp_path / "out.jsonl", IDS)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_cannot_be_added_twice_or_hold_nan(tmp_path):
    with ShardStore(tmp_path / "rows", SETTINGS) as store:
        store.append(_row("a"))
        with pytest.raises(ValueError, match="row 'a' is there already"):
            store.append(_row("a"))
        with pytest.raises(ValueError, match="JSON compliant"):
            store.append({"id": "b", "score": float("nan")})
        assert store.done == {"a"}


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    with (
        ShardStore(tmp_path / "rows", SETTINGS),
        pytest.raises(RecordError, match=rf"shard-00000.jsonl: process {os.getpid()} on .* wait for it"),
        ShardStore(tmp_path / "rows", SETTINGS),
    ):
        pass
    _fill(tmp_path / "rows")  # the lock ended with its holder


def test_malformed_rows_and_settings_are_named(tmp_path):
    _fill(tmp_path / "rows")
    (tmp_path / "rows" / "shard-00001.jsonl").write_text('{"id": 9}\n[]\n')
    with pytest.raises(RecordError, match=r"shard-00001.jsonl:2: expected an object with 'id', found '\[\]"):
        _fill(tmp_path / "rows")
    (tmp_path / "rows" / "settings.json").write_text("{")
    with pytest.raises(RecordError, match=r"settings.json: not valid JSON"):
        _fill(tmp_path / "rows")
    (tmp_path / "rows" / "settings.json").unlink()
    with pytest.raises(RecordError, match=r"has rows but no settings.json"):
        _fill(tmp_path / "rows")
