"""What is wrong with a file of an earlier system as a whole, and what groups cannot be written as one."""

import json

import pytest
from legacy_files import SEED

from data.candidate_groups import load_groups, main, write_groups


def test_other_content(problems_of):
    assert problems_of({}) == [": expected at least one group, found none"]
    assert problems_of("5") == [": expected a JSON object or list, found int"]
    assert problems_of('{"12": {},\n "13" 5}') == [
        ":2: column 7: not valid JSON: Expecting ':' delimiter (found '\"13\" 5}')"
    ]
    expected = "expected an object with either 'pointer_candidates' (RL data) or 'id_list' (beams)"
    assert problems_of({"12": {"a": 1}, "13": [1]}) == [
        f", query 12: {expected}, found the keys ['a']",
        f", query 13: {expected}, found [1]",
    ]


def test_a_query_that_stands_twice(problems_of):
    text = json.dumps(SEED)
    assert problems_of(text[:-1] + ", " + text[1:]) == [": duplicate key '12' in one object"]


def test_two_kinds_in_one_file(problems_of):
    content = {**SEED, "13": {"id_list": [[1, 13]], "score_list": [1.0]}}
    message = "expected 'pointer_candidates' as query 12 has, found 'id_list': two kinds in one file"
    assert problems_of(content) == [f", query 13: {message}"]


def test_a_list_of_groups_in_a_json_file(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text('[{"id": 1, "candidates": [{"pointer": [2]}]}]', encoding="utf-8")
    assert load_groups(path)[0].id == 1


def test_ids_that_are_the_same_text(tmp_path):
    path = tmp_path / "groups.jsonl"
    rows = [{"id": item, "candidates": [{"pointer": [2], "beam_score": 1.0}]} for item in (1, "1")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_groups(path, load_groups(path))
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--output", str(tmp_path / "o.json"), "--to", "beams"])
    assert caught.value.code == "error: group '1': field 'id': its text '1' is taken by another group or _meta"
