"""Embeddings that torch.save wrote: what is read, what is refused, and that nothing in them runs."""

import re

import numpy as np
import pytest
import torch

from data.candidates.embedding_table import EmbeddingTable
from data.io.records import RecordError

VALUES = torch.arange(6.0).reshape(3, 2)


class Harmful:
    """What unpickling would run."""

    def __reduce__(self):
        return exec, ("raise AssertionError('it ran')",)


@pytest.fixture
def load(tmp_path):
    """Function: content -> the table that is read from its file."""

    def read(content, name: str = "candidate_embeddings.pt") -> EmbeddingTable:
        torch.save(content, tmp_path / name)
        return EmbeddingTable.load(tmp_path / name)

    return read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_rows_of_a_tensor_go_by_number(load, dtype):
    table = load(VALUES.to(dtype))
    assert (table.ids, table.parts, table.values.dtype) == ([0, 1, 2], (), np.float32)
    np.testing.assert_array_equal(table.values, VALUES.numpy())


def test_a_view_is_read_as_it_looks(load):
    np.testing.assert_array_equal(load(VALUES.T).values, VALUES.numpy().T)


def test_a_dictionary_brings_its_ids(load):
    table = load({7: VALUES[0], "a": VALUES[2]}, "queries.pth")
    assert table.ids == [7, "a"]
    np.testing.assert_array_equal(table.values, [[0, 1], [4, 5]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([VALUES], "expected a tensor (N, d), or a dictionary of ids and vectors (d,), found list"),
        (VALUES[0], "the tensor: expected the shape (N, d) and no empty one, found (2,)"),
        (VALUES[:0], "the tensor: expected the shape (N, d) and no empty one, found (0, 2)"),
        (VALUES.long(), "the tensor: expected floating-point numbers, all of them stored, found torch.int64"),
        (
            VALUES.to_sparse(),
            "the tensor: expected floating-point numbers, all of them stored, found torch.sparse_coo",
        ),
        (
            torch.zeros(1).expand(10**9, 768),
            "the tensor: expected 768000000000 numbers for the shape (1000000000, 768)",
        ),
        (VALUES / 0, "embeddings: id 0: values that are not finite"),
        (VALUES.double() * 1e300, "embeddings: id 0: values that are not finite"),
        ({}, "expected at least one vector, found an empty dictionary"),
        ({"a": VALUES}, "'a': expected the shape (d,) and no empty one, found (3, 2)"),
        ({1: VALUES[0], 2: VALUES[0, :1]}, "2: expected the shape (2,) as 1 has, found (1,)"),
        ({"values": 3}, "'values': expected a vector (d,), found int"),
        ({(1, 2): VALUES[0]}, "expected whole numbers or texts as ids, found (1, 2)"),
        ({1: Harmful()}, "not a checkpoint of tensors and plain values alone: "),
    ],
)
def test_what_is_no_table_is_named(load, tmp_path, content, message):
    with pytest.raises(RecordError, match=re.escape(f"{tmp_path / 'candidate_embeddings.pt'}: {message}")):
        load(content)


def test_files_that_torch_did_not_write(tmp_path):
    with pytest.raises(RecordError, match=r"none\.pt: no such file"):
        EmbeddingTable.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello", encoding="utf-8")
    with pytest.raises(RecordError, match=r"text\.pt: not a file that torch.save wrote"):
        EmbeddingTable.load(tmp_path / "text.pt")


def test_tables_are_not_written_under_torchs_names(tmp_path):
    with pytest.raises(RecordError, match=r"x\.pt: tables are written as \.safetensors"):
        EmbeddingTable([0], np.ones((1, 2))).save(tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []
