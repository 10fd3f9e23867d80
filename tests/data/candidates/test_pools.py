"""Pools of examples as files."""

import json

import pytest

from data.candidates.pools import load_pools, write_pools
from data.io.records import RecordError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pools.jsonl"


def write(path, *rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_pools_come_back_as_written(path):
    pools = {7: [3, "x", 1], "7": (2, 3)}
    write_pools(path, pools, "random")
    assert load_pools(path) == {7: [3, "x", 1], "7": [2, 3]}
    assert list(load_pools(path)) == [7, "7"]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0]) == {
        "query_id": 7,
        "pool": [3, "x", 1],
        "sampler": "random",
    }


def test_ids_must_be_the_data_sets(path):
    write(path, {"query_id": 1, "pool": [5, 6]}, {"query_id": 2, "pool": [6, "5", 9]})
    assert load_pools(path, {5, 6, 9, "5"})[2] == [6, "5", 9]
    with pytest.raises(RecordError) as caught:
        load_pools(path, [5, 6])
    assert caught.value.problems == [
        f"{path}:2: field 'pool': expected ids of the examples' data set, found '5'",
        f"{path}:2: field 'pool': expected ids of the examples' data set, found 9",
    ]


def test_every_problem_is_reported(path):
    write(
        path,
        {"query_id": 1, "pool": [5]},
        {"query_id": None, "pool": [5, 5]},
        {"query_id": True, "pool": []},
        {"pool": 5, "query_id": 2},
        {"query_id": 1, "pool": [True], "samplr": "x"},
        {"query_id": 1, "pool": [6]},
    )
    with pytest.raises(RecordError) as caught:
        load_pools(path)
    assert caught.value.problems == [
        f"{path}:2: field 'query_id': expected an integer or a text (found None)",
        f"{path}:2: field 'pool': duplicate id 5 (found [5, 5])",
        f"{path}:3: field 'query_id': expected an integer or a text (found True)",
        f"{path}:3: field 'pool': expected at least one id (found [])",
        f"{path}:4: field 'pool': expected a list of ids (found 5)",
        f"{path}:5: field 'pool': item 0: expected an integer or a text, found True (found [True])",
        f"{path}:5: field 'samplr': Extra inputs are not permitted (found 'x')",
        f"{path}:6: field 'query_id': duplicate 1",
    ]


def test_no_pools_are_an_error(path):
    write(path)
    with pytest.raises(RecordError, match="expected at least one pool, found none"):
        load_pools(path)


@pytest.mark.parametrize("pool", [[], [1, 1], [1.5], [None]])
def test_what_could_not_be_read_is_not_written(path, pool):
    with pytest.raises(RecordError, match=r"pools.jsonl, query 4: field 'pool'"):
        write_pools(path, {3: [1], 4: pool}, "random")
    assert not path.exists()
