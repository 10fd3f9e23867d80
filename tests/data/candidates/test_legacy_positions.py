"""Pointers and beams that are positions in a pool or a data set."""

import json

import pytest
from legacy_files import BEAMS, POOL, QUERY, SEED, SHORT_BEAMS, with_positions

from data.candidate_groups import load_groups, main
from data.candidates.legacy_formats import EarlierFormat
from data.candidates.pools import write_pools
from data.io.records import RecordError

POSITIONS = {"12": {"pointer_candidates": [{"pointer": [1, 3], "reward": 1.0}, {"pointer": [5, 2], "reward": 0.0}]}}


def test_pointers_as_positions_in_the_pool(convert, tmp_path, problems_of):
    write_pools(tmp_path / "pools.jsonl", {12: POOL}, "random")
    options = ("--positions", "pool", "--pools", str(tmp_path / "pools.jsonl"), "--integer_ids")
    [group], written = convert(POSITIONS, "rl", options, ("--form", "local"))
    assert (group.id, group.pool, [one.pointer for one in group.candidates]) == (12, POOL, [[7, 22], [5, 18]])
    assert [one["pointer"] for one in written["12"]["pointer_candidates"]] == [[1, 3], [5, 2]]
    in_file = {"12": {"candidate_pool_ids": POOL, **POSITIONS["12"]}}
    [group], _ = convert(in_file, "rl", ("--positions", "pool"))
    assert [one.pointer for one in group.candidates] == [[7, 22], [5, 18]]
    assert problems_of(POSITIONS, earlier=EarlierFormat(positions="pool")) == [
        ", query 12: field 'candidate_pool_ids': missing, and pointers are positions in it"
    ]
    in_file["12"]["pointer_candidates"][1] = {"pointer": [1, 6]}
    assert problems_of(in_file, earlier=EarlierFormat(positions="pool")) == [
        ", query 12: field 'pointer_candidates.1.pointer': expected positions in a pool of 6, found 6"
    ]
    in_file["12"]["pointer_candidates"][1] = {"pointer": [1, 2], "pointer_pos": [1, 3]}
    assert problems_of(in_file, earlier=EarlierFormat(positions="pool")) == [
        ", query 12: field 'pointer_candidates.1.pointer_pos': position 3 of the pool is 22, and not 18 as the ids say"
    ]


@pytest.fixture
def examples(tmp_path):
    """A data set of 30 records; that at position n has the id 100 + n, and the fourth a text."""
    path = tmp_path / "examples.jsonl"
    ids = [f"e{number}" if number == 3 else 100 + number for number in range(30)]
    rows = [{"id": item, "image": "x.png", "question": "q?", "answers": ["a"]} for item in ids]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("content", [BEAMS, SHORT_BEAMS], ids=["with details", "short"])
def test_beams_as_positions_in_the_data_set(convert, examples, content):
    [group], written = convert(content, "beams", ("--positions", "examples", "--examples", str(examples)))
    assert (group.id, [one.pointer for one in group.candidates]) == (112, [[107, 122], ["e3", 107]])
    assert written["112"]["id_list"] == [[122, 107, 112], [107, "e3", 112]]


@pytest.mark.parametrize("form", ["global", "local"])
def test_rl_data_as_positions_in_the_data_set(convert, examples, form):
    [group], written = convert(with_positions(form), "rl", ("--positions", "examples", "--examples", str(examples)))
    assert (group.id, group.pool) == (112, [109, 107, 118, 122, "e3", 105])
    assert [one.pointer for one in group.candidates] == [[107, 122], [105, 118], ["e3", 109]]
    assert written["112"]["query"] == {**QUERY, "query_id": 112}
    [group], _ = convert(SEED, "rl", ("--positions", "examples", "--examples", str(examples)))
    assert (group.id, group.candidates[2].pointer) == (112, ["e3", 109])


def test_positions_that_the_data_set_does_not_have(problems_of):
    how = EarlierFormat(positions="examples", example_ids=[f"e{number}" for number in range(13)])
    assert problems_of(SHORT_BEAMS, earlier=how) == [
        ", query 12: field 'id_list.0': expected positions in the examples' data set of 13, found 22"
    ]
    assert problems_of({"99": SHORT_BEAMS["12"] | {"id_list": [[1], [2]]}}, earlier=how) == [
        ", query 99: field 'id_list': expected positions in the examples' data set of 13, found 99"
    ]
    assert problems_of({"x": POSITIONS["12"]}, earlier=how) == [
        ", query x: field 'query.query_id': expected an integer as key of this entry, found 'x'"
    ]


def test_positions_are_of_earlier_files_and_of_a_known_order(problems_of, tmp_path, capsys):
    found = problems_of(SHORT_BEAMS, earlier=EarlierFormat(positions="pool"))
    assert found == [", query 12: field 'id_list': expected pointers of RL data, for positions: pool, found beams"]
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", "x.json", "--positions", "examples"])
    assert caught.value.code == 2
    assert "--positions: examples: expected --examples, the data set" in capsys.readouterr().err
    for name, text in (("a.jsonl", '{"id": 1, "candidates": [{"pointer": [2]}]}'), ("a.json", "[]")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(RecordError, match="positions: pool: expected an earlier system's beams or RL data"):
            load_groups(tmp_path / name, earlier=EarlierFormat(positions="pool"))
