"""Tables of embeddings: ids and rows, files, and what is wrong with a broken one."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.candidates.embedding_table import TABLE_FILE, EmbeddingTable, Part
from data.io.records import RecordError

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
PARTS = (Part(name="image", width=3, encoder="aa"), Part(name="text", width=1, encoder="bb"))


def test_rows_are_found_by_id_whose_type_counts():
    table = EmbeddingTable([5, "5", "x"], VALUES)
    assert table.rows(["x", 5, "5", 5]).tolist() == [2, 0, 1, 0]
    assert table.rows([]).tolist() == []
    with pytest.raises(RecordError) as caught:
        table.rows(["x", 7, "7", 7])
    assert caught.value.problems == [
        "embeddings: id 7 is not in the table",
        "embeddings: id '7' is not in the table",
    ]


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_what_is_saved_is_loaded(tmp_path, name):
    written = EmbeddingTable([5, "5", "ü"], VALUES, PARTS).save(tmp_path / "new" / name)
    assert written == tmp_path / "new" / (name if "." in name else f"{name}/{TABLE_FILE}")
    assert list(written.parent.iterdir()) == [written]  # no temporary file is left
    loaded = EmbeddingTable.load(tmp_path / "new" / name)
    assert (loaded.ids, loaded.parts) == ([5, "5", "ü"], PARTS)
    assert loaded.values.dtype == np.float32
    np.testing.assert_array_equal(loaded.values, VALUES)


def test_parts_are_columns():
    table = EmbeddingTable([1, 2, 3], VALUES, PARTS)
    np.testing.assert_array_equal(table.part("image"), VALUES[:, :3])
    np.testing.assert_array_equal(table.part("text"), VALUES[:, 3:])
    with pytest.raises(RecordError, match="no part 'sound' in the table; its parts: image, text"):
        table.part("sound")


def test_tables_of_different_encoders_do_not_fit_together():
    table = EmbeddingTable([1, 2, 3], VALUES, PARTS)
    table.check_same_encoders(EmbeddingTable([9], VALUES[:1], PARTS))
    for values, parts in ((VALUES[:1, :2], ()), (VALUES[:1], (PARTS[0], Part(name="text", width=1, encoder="cc")))):
        with pytest.raises(RecordError, match="two tables made by different encoders"):
            table.check_same_encoders(EmbeddingTable([9], values, parts))


@pytest.mark.parametrize(
    ("ids", "values", "parts", "problem"),
    [
        ([1, 1, 2], VALUES, (), "duplicate id 1"),
        ([1, 2], VALUES, (), r"expected one row for each of 2 ids, found \(3, 4\)"),
        ([1, 2, 3], VALUES[0, :3], (), r"expected one row for each of 3 ids, found \(3,\)"),
        ([1, 2, 3], VALUES, PARTS[:1], "expected parts of 4 columns in all"),
        ([1, "b", 3], np.where(VALUES == 5, np.nan, VALUES), (), "id 'b': values that are not finite"),
        ([1, "b", 3], np.where(VALUES == 0, np.inf, VALUES), (), "id 1: values that are not finite"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(ids, values, parts, problem):
    with pytest.raises(RecordError, match=problem):
        EmbeddingTable(ids, values, parts)


@pytest.mark.parametrize(
    ("tensors", "metadata", "problem"),
    [
        ({"other": VALUES}, {"ids": "[1, 2, 3]"}, "expected the tensors values; values is missing"),
        (
            {"values": VALUES.astype(np.float64)},
            {"ids": "[1, 2, 3]"},
            "tensor 'values': expected float32, found float64",
        ),
        ({"values": VALUES}, {}, "metadata: expected the ids and parts as JSON: Invalid JSON"),
        ({"values": VALUES}, {"ids": "[1, 2.5, 3]"}, "metadata: expected the ids and parts as JSON: Input should be"),
        ({"values": VALUES}, {"ids": "[1, 2, 2]"}, "embeddings: duplicate id 2"),
        (
            {"values": VALUES},
            {"ids": "[1, 2, 3]", "parts": "[5]"},
            "expected the ids and parts as JSON: Input should be",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, tensors, metadata, problem):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(RecordError, match=problem) as caught:
        EmbeddingTable.load(path)
    assert caught.value.problems[0].startswith(f"{path}: ")


def test_a_file_that_is_missing_or_cut_off_is_named(tmp_path):
    with pytest.raises(RecordError, match="none.safetensors: no such file"):
        EmbeddingTable.load(tmp_path / "none.safetensors")
    path = EmbeddingTable([1, 2, 3], VALUES).save(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RecordError, match=f"{path}: not readable as safetensors"):
        EmbeddingTable.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = EmbeddingTable([1, 2, 3], VALUES).save(tmp_path)

    def fail(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        EmbeddingTable([4], VALUES[:1]).save(tmp_path)
    assert EmbeddingTable.load(tmp_path).ids == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]
