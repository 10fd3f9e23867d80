"""RL data of earlier systems: to groups, and back without a difference."""

import json

import pytest
from legacy_files import POOL, SEED, with_positions

from data.candidate_groups import group_row, load_groups, main
from data.candidates.legacy_formats import EarlierFormat, rl_entry
from data.candidates.pools import write_pools


def test_the_seeds_data_comes_back_as_it_was(convert):
    [group], written = convert(SEED, "rl")
    assert written == SEED
    assert (group.id, group.pool) == ("12", None)
    assert [candidate.pointer for candidate in group.candidates] == [[7, 22], [5, 18], [3, 9]]
    assert [candidate.vqa_acc_score for candidate in group.candidates] == [1.0, 0.9, 0.0]


def test_keys_become_integers_if_asked_for(convert):
    [group], written = convert(SEED, "rl", ("--integer_ids",))
    assert group.id == 12
    assert written == {"12": {"query": {"query_id": 12}, **SEED["12"]}}


@pytest.mark.parametrize("form", ["global", "local"])
def test_both_forms_come_back_as_they_were(convert, form):
    content = with_positions(form)
    [group], written = convert({"_meta": {"vqa_model": "m"}, **content}, "rl", (), ("--form", form))
    assert written == content
    assert (group.id, group.pool) == (12, POOL)
    assert [candidate.pointer for candidate in group.candidates] == [[7, 22], [5, 18], [3, 9]]


def test_both_forms_are_the_same_groups(convert):
    groups = [convert(with_positions(form), "rl")[0][0] for form in ("global", "local")]
    assert group_row(groups[0]) == group_row(groups[1])


def test_the_form_is_local_where_every_group_has_a_pool(convert):
    assert convert(with_positions("global"), "rl")[1] == with_positions("local")


def test_positions_without_a_pool_are_kept_and_no_pool_is_made_up(convert):
    content = with_positions("global")
    del content["12"]["candidate_pool_ids"]
    [group], written = convert(content, "rl")
    assert group.pool is None
    assert written == content


def test_a_pool_can_be_given(convert, tmp_path):
    content = with_positions("global")
    del content["12"]["candidate_pool_ids"]
    write_pools(tmp_path / "pools.jsonl", {12: POOL}, "random")
    [group], written = convert(content, "rl", ("--pools", str(tmp_path / "pools.jsonl")))
    assert group.pool == POOL
    assert written == with_positions("local")
    write_pools(tmp_path / "pools.jsonl", {12: POOL[::-1]}, "random")
    with pytest.raises(SystemExit) as caught:
        convert(content, "rl", ("--pools", str(tmp_path / "pools.jsonl")))
    assert "field 'pointer_candidates.0.pointer_pos': position 1 of the pool is 3, and not 7" in caught.value.code


def test_text_ids_stay_texts(convert):
    content = {"12": {**SEED["12"], "query": {"query_id": "12"}}}
    [group], written = convert(content, "rl")
    assert group.id == "12"
    assert written == content


def test_columns_of_groups_become_the_query(tmp_path):
    rows = [{"id": 1, "question": "q?", "answers": ["a"], "extra": 5, "candidates": [{"pointer": [3], "reward": 0.5}]}]
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    main(["--dataset_name", str(path), "--output", str(tmp_path / "rl.json"), "--to", "rl"])
    written = json.loads((tmp_path / "rl.json").read_text(encoding="utf-8"))
    assert written["1"]["query"] == {"query_id": 1, "question": "q?", "gt_answers_raw": ["a"]}
    [group] = load_groups(tmp_path / "rl.json")
    assert (group.id, group.question, group.answers, group.extra) == (1, "q?", ["a"], 5)
    assert group.candidates[0].reward == 0.5


def test_an_integer_id_stands_in_the_query(convert):
    content = {"12": {"query": {"question": "q?"}, **SEED["12"]}}
    _, written = convert(content, "rl", ("--integer_ids",))
    assert written["12"]["query"] == {"query_id": 12, "question": "q?"}


def test_positions_follow_a_pool_that_came_later():
    row = {"id": 1, "pool": [5, 6, 7], "candidates": [{"pointer": [7, 5], "pointer_pos": [1, 0]}]}
    assert rl_entry(row, "global")["pointer_candidates"] == [{"pointer": [7, 5], "pointer_pos": [2, 0]}]
    assert rl_entry(row, "local")["pointer_candidates"] == [{"pointer": [2, 0], "pointer_global": [7, 5]}]


def test_groups_survive_the_way_through_rl_data(tmp_path):
    rows = [
        {"id": number, "pool": [4, 5, 6], "candidates": [{"pointer": [6, 4], "reward": 0.5, "beam_rank": None}]}
        for number in (3, 1, 2)
    ]
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for form in ("global", "local"):
        main(["--dataset_name", str(path), "--output", str(tmp_path / "rl.json"), "--to", "rl", "--form", form])
        again = [group_row(group) for group in load_groups(tmp_path / "rl.json")]
        assert [{name: row[name] for name in ("id", "pool", "candidates")} for row in again] == rows


def changed(content: dict, **changes) -> dict:
    """A copy with fields of the first candidate changed; `None` for the ones to leave out."""
    content = json.loads(json.dumps(content))
    candidate = content["12"]["pointer_candidates"][0]
    candidate.update(changes)
    return content


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (
            "global",
            {"pointer_pos": [1, 2]},
            "field 'pointer_candidates.0.pointer_pos': position 2 of the pool is 18, and not 22 as the ids say",
        ),
        (
            "global",
            {"pointer_pos": [1, 64]},
            "field 'pointer_candidates.0.pointer_pos': expected positions in a pool of 6, found 64",
        ),
        (
            "global",
            {"pointer_pos": [1]},
            "field 'pointer_candidates.0.pointer_pos': expected 2 positions, one for each id, found 1",
        ),
        (
            "global",
            {"pointer_pos": [1, -3]},
            "field 'pointer_candidates.0.pointer_pos.1': Input should be greater than or equal to 0 (found -3)",
        ),
        ("global", {"pointer": [7, 7]}, "field 'pointer_candidates.0.pointer': duplicate id 7 (found [7, 7])"),
        (
            "local",
            {"pointer": [1, 2]},
            "field 'pointer_candidates.0.pointer': position 2 of the pool is 18, and not 22 as the ids say",
        ),
        (
            "local",
            {"pointer": [1, "3"]},
            "field 'pointer_candidates.0.pointer.1': Input should be a valid integer (found '3')",
        ),
        (
            "local",
            {"vqa_acc_score": 55},
            "field 'pointer_candidates.0.vqa_acc_score': expected 0 to 1 (percentages are not converted) (found 55)",
        ),
    ],
)
def test_wrong_rl_data_is_named_as_in_the_file(problems_of, form, changes, message):
    assert problems_of(changed(with_positions(form), **changes)) == [f", query 12: {message}"]


def test_pointers_outside_the_pool_or_the_data_set(problems_of):
    content = with_positions("global")
    content["12"]["pointer_candidates"] = [{"pointer": [7, 8]}]
    assert problems_of(content) == [
        ", query 12: field 'pointer_candidates.0.pointer': expected ids of the group's pool (found [8])"
    ]
    found = problems_of(SEED, example_ids={7, 22, 5, 18})
    message = "expected ids of the examples' data set, found [3, 9]"
    assert found == [f", query 12: field 'pointer_candidates.2.pointer': {message}"]


def test_the_local_form_needs_its_pool(problems_of):
    content = with_positions("local")
    del content["12"]["candidate_pool_ids"]
    message = "field 'candidate_pool_ids': missing, and pointers are positions in it"
    assert problems_of(content) == [f", query 12: {message}"]
    content = with_positions("local")
    del content["12"]["pointer_candidates"][1]["pointer_global"]
    message = "field 'pointer_candidates.1.pointer_global': Field required (found missing)"
    assert problems_of(content) == [f", query 12: {message}"]


def test_a_given_pool_must_be_the_files(problems_of):
    found = problems_of(with_positions("local"), earlier=EarlierFormat(pools={12: [1, 2]}))
    assert found == [", query 12: field 'candidate_pool_ids': differs from the pool that was given for this query"]
