"""Queries, examples and pools are checked together, before any model."""

import numpy as np
import pytest
import torch

from data.candidates.embedding_table import EmbeddingTable
from data.candidates.pools import write_pools
from data.io.records import RecordError, write_jsonl
from rollouts.example_selection.data import cosines, load_selection_data, load_tables, pool_batch

TRAIN, TEST = "train", "test"


def load(folder, queries=TRAIN, pools="pools-train.jsonl", shots=2, **options):
    path = None if pools is None else folder / pools
    return load_selection_data((str(folder), queries), (str(folder), TRAIN), path, shots, **options)


def test_queries_come_in_the_order_of_the_pools_or_of_their_file(selection_files):
    pooled = load(selection_files, only_pooled=True)
    assert [query.id for query in pooled.queries] == [f"train-{number}" for number in range(12)]
    tested = load(selection_files, TEST, "pools-test.jsonl", limit=3)
    assert [query.id for query in tested.queries] == ["test-0", "test-1", "test-2"]
    assert len(tested.examples) == 24


def test_the_query_is_kept_out_of_its_pool_by_id(selection_files, tmp_path):
    write_pools(tmp_path / "pools.jsonl", {"train-3": ["train-1", "train-3", "train-2"]}, "by hand")
    data = load_selection_data(
        (str(selection_files), TRAIN), (str(selection_files), TRAIN), tmp_path / "pools.jsonl", 2, only_pooled=True
    )
    assert data.pools == {"train-3": ["train-1", "train-2"]}
    with pytest.raises(RecordError, match="3 shots need pools of at least 3 examples beside the query.*'train-3'"):
        load_selection_data(
            (str(selection_files), TRAIN), (str(selection_files), TRAIN), tmp_path / "pools.jsonl", 3, only_pooled=True
        )


def test_drawn_pools_have_the_size_and_not_the_query(selection_files):
    data = load(selection_files, TRAIN, None, pool_size=23, seed=4)
    assert all(len(set(pool)) == 23 and query not in pool for query, pool in data.pools.items())
    assert len(data.queries) == 24
    assert (
        load(selection_files, TRAIN, None, pool_size=5, seed=4).pools
        == load(selection_files, TRAIN, None, pool_size=5, seed=4).pools
    )
    few = load(selection_files, TEST, None, pool_size=5, limit=2).pools
    assert few == {key: load(selection_files, TEST, None, pool_size=5).pools[key] for key in ("test-0", "test-1")}
    with pytest.raises(RecordError, match=r"pool size: expected at most 23 \(examples beside the query\), found 24"):
        load(selection_files, TRAIN, None, pool_size=24)


def test_an_unknown_example_and_a_query_without_a_pool(selection_files, tmp_path):
    write_pools(tmp_path / "pools.jsonl", {"test-0": ["train-1", "elsewhere"]}, "by hand")
    with pytest.raises(RecordError, match=r"pools.jsonl:1: field 'pool'.*'elsewhere'"):
        load_selection_data((str(selection_files), TEST), (str(selection_files), TRAIN), tmp_path / "pools.jsonl", 1)
    with pytest.raises(RecordError, match=r"pools-train.jsonl: no pool with the query id 'test-0', .* and 7 more"):
        load(selection_files, TEST)
    with pytest.raises(RecordError, match=r"no record with the query id 'train-0'"):
        load(selection_files, TEST, only_pooled=True)


def test_records_without_ids_go_by_their_place_and_ids_are_unique(selection_files, tmp_path):
    rows = [{"image": str(selection_files / "train-0.png"), "question": f"{n}?", "answers": "a"} for n in range(3)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = load_selection_data((str(tmp_path), TRAIN), (str(tmp_path), TRAIN), None, 1, pool_size=2)
    assert [query.id for query in data.queries] == [0, 1, 2]
    write_jsonl(tmp_path / "train.jsonl", [{**row, "id": 7} for row in rows])
    with pytest.raises(RecordError, match="field 'id': 7 is record 1's id too"):
        load_selection_data((str(tmp_path), TRAIN), (str(tmp_path), TRAIN), None, 1, pool_size=2)


def test_a_query_that_no_answer_could_score_at_is_named(selection_files, tmp_path):
    rows = [{"image": str(selection_files / "train-0.png"), "question": f"{n}?", "answers": ["a"]} for n in range(3)]
    write_jsonl(tmp_path / "train.jsonl", [{**row, "id": f"q{n}"} for n, row in enumerate(rows)])
    with pytest.raises(RecordError) as caught:
        load_selection_data((str(tmp_path), TRAIN), (str(tmp_path), TRAIN), None, 1, pool_size=2)
    assert len(caught.value.problems) == 3
    assert caught.value.problems[1].startswith(f"{tmp_path}: query 'q1': field 'answers': expected the answers of sev")


def test_tables_must_hold_every_id_and_come_from_the_same_encoders(selection_files, tmp_path):
    data = load(selection_files, TEST, "pools-test.jsonl")
    paths = selection_files / "test.safetensors", selection_files / "train.safetensors"
    queries, examples = load_tables(*paths, data)
    with pytest.raises(RecordError, match=r"train.safetensors: no embedding of the ids 'test-0'"):
        load_tables(paths[1], paths[1], data)
    EmbeddingTable(queries.ids, queries.values[:, :4], queries.parts[:1]).save(tmp_path / "other.safetensors")
    with pytest.raises(RecordError, match="two tables made by different encoders"):
        load_tables(tmp_path / "other.safetensors", paths[1], data)


def test_tables_of_an_earlier_system_are_read(selection_files, tmp_path):
    data = load(selection_files, TEST, "pools-test.jsonl")
    paths = selection_files / "test.safetensors", selection_files / "train.safetensors"
    for path in paths:
        table = EmbeddingTable.load(path)
        torch.save(dict(zip(table.ids, torch.from_numpy(table.values), strict=True)), tmp_path / f"{path.stem}.pt")
    read = load_tables(tmp_path / "test.pt", tmp_path / "train.pt", data)
    for table, path in zip(read, paths, strict=True):
        assert (table.values == EmbeddingTable.load(path).values).all()
    with pytest.raises(RecordError, match="two tables made by different encoders"):
        load_tables(tmp_path / "test.pt", paths[1], data)


def test_a_batch_holds_each_example_once(selection_files):
    data = load(selection_files, TEST, "pools-test.jsonl")
    queries, examples = load_tables(selection_files / "test.safetensors", selection_files / "train.safetensors", data)
    ids = ["test-4", "test-1"]
    pools = [data.pools["test-4"], data.pools["test-1"][:6]]
    batch = pool_batch(ids, pools, queries, examples)
    assert batch.pools.shape == (2, 10)
    assert batch.pools[1, 6:].tolist() == [-1] * 4
    assert len(batch.examples) == len({item for pool in pools for item in pool})
    for row, pool in enumerate(pools):
        found = batch.examples[batch.pools[row, : len(pool)]].numpy()
        assert np.array_equal(found, examples.values[examples.rows(pool)])
    assert np.array_equal(batch.queries.numpy(), queries.values[queries.rows(ids)])


def test_cosine_by_hand():
    found = cosines(np.array([3.0, 4.0]), np.array([[6.0, 8.0], [4.0, -3.0], [0.0, 0.0], [5.0, 0.0]]))
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.6])
