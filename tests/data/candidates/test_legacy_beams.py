"""Earlier systems' beams: to groups, and back without a difference."""

import json

import pytest
from legacy_files import BEAMS, SEED, SHORT_BEAMS

from data.candidate_groups import main
from data.candidates.legacy_formats import EarlierFormat


@pytest.mark.parametrize("content", [BEAMS, SHORT_BEAMS], ids=["with details", "short"])
def test_beams_come_back_as_they_were(convert, content):
    [group], written = convert(content, "beams")
    assert written == content
    assert group.id == 12
    assert [candidate.pointer for candidate in group.candidates] == [[7, 22], [3, 7]]  # in the order of selection
    assert [candidate.beam_score for candidate in group.candidates] == [0.25, -0.125]
    assert [candidate.beam_rank for candidate in group.candidates] == [0, 1]
    assert {candidate.gen_method for candidate in group.candidates} == {"beam"}


def test_step_scores_are_the_shots(convert):
    [group], _ = convert(BEAMS, "beams")
    assert [candidate.step_scores for candidate in group.candidates] == [[0.5, 0.25], [0.5, -0.125]]


def test_shown_on_the_right_means_selected_in_this_order(convert):
    order = ("--construct_order", "right")
    [group], written = convert(SHORT_BEAMS, "beams", order, order)
    assert [candidate.pointer for candidate in group.candidates] == [[22, 7], [7, 3]]
    assert written == SHORT_BEAMS


def test_the_wrong_order_is_noticed_where_the_file_tells(problems_of):
    [problem] = problems_of(BEAMS, earlier=EarlierFormat(construct_order="right"))
    message = "expected [22, 7] (id_list under construct_order right), found [7, 22]"
    assert problem == f", query 12: field 'beams.0.shots': {message}"


def test_text_ids_of_beams(convert):
    content = {"a": {"id_list": [["y", "x", "a"]], "score_list": [1.0]}}
    [group], written = convert(content, "beams")
    assert (group.id, group.candidates[0].pointer) == ("a", ["x", "y"])
    assert written == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_list": [0.5]}, "field 'score_list': expected 2 entries, one for each of id_list, found 1"),
        ({"score_list": [0.5, None]}, "field 'score_list.1': Input should be a valid number (found None)"),
        ({"id_list": [[22, 7, 12], [7, 3, 13]]}, "field 'id_list.1': expected 12, the key of this entry, found 13"),
        (
            {"id_list": [[22, 7, 12], [7, 3, "12"]]},
            "field 'id_list': expected the query's id last, of one type, found integers and texts",
        ),
        ({"id_list": [[22, 7, 12], [12]]}, "field 'id_list.1': expected at least one example before the query"),
        ({"id_list": [[22, 22, 12], [7, 3, 12]]}, "field 'id_list.0': duplicate id 22 (found [22, 22, 12])"),
        ({"id_list": [[12, 7, 12], [7, 3, 12]]}, "field 'id_list.0': duplicate id 12 (found [12, 7, 12])"),
        ({"shot_scores": [[0.5, 0.25], [0.5]]}, "field 'shot_scores.1': expected 2 scores, found 1"),
        ({"candidates": []}, "field 'candidates': a column of this name cannot be kept: groups have one of their own"),
    ],
)
def test_wrong_beams_are_named_as_in_the_file(problems_of, changes, message):
    [problem] = problems_of({"12": {**SHORT_BEAMS["12"], **changes}})
    assert problem.startswith(f", query 12: {message}")


def test_details_that_contradict_each_other(problems_of):
    content = json.loads(json.dumps(BEAMS))
    content["12"]["beams"][1]["full_sequence"] = [3, 7, 12]
    [problem] = problems_of(content)
    assert problem == (
        ", query 12: field 'beams.1.full_sequence': expected [7, 3, 12], as in id_list, found [3, 7, 12]"
    )
    content = json.loads(json.dumps(BEAMS))
    content["12"]["shot_scores"][0] = [0.5, 0.5]
    assert problems_of(content) == [
        ", query 12: field 'shot_scores.0': differs from the scores of the same beam's shots"
    ]


def test_beams_outside_their_pool_or_the_data_set(problems_of):
    found = problems_of(SHORT_BEAMS, earlier=EarlierFormat(pools={12: [7, 22, 5]}))
    assert found == [", query 12: field 'id_list.1': expected ids of the group's pool (found [3])"]
    found = problems_of(SHORT_BEAMS, example_ids={7, 22})
    assert found == [", query 12: field 'id_list.1': expected ids of the examples' data set, found [3]"]


def test_only_scored_candidates_are_beams(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps(SEED), encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--output", str(tmp_path / "beams.json"), "--to", "beams"])
    assert caught.value.code == "error: group '12': field 'candidates.1.beam_score': missing; beams have one each"
    assert not (tmp_path / "beams.json").exists()


def test_an_example_cannot_have_the_querys_id_in_beams(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_text('{"id": 7, "candidates": [{"pointer": [5, 7], "beam_score": 1.0}]}', encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--output", str(tmp_path / "o.json"), "--to", "beams"])
    assert "group 7: field 'candidates.0.pointer': 7 is the query's id too" in caught.value.code


def test_id_lists_may_leave_out_the_query(convert):
    """As the design note of the beams has them; groups are the same, and beams are written with the query's id."""
    content = {"12": {**SHORT_BEAMS["12"], "id_list": [[22, 7], [7, 3]]}}
    [group], written = convert(content, "beams", ("--integer_ids",))
    assert (group.id, [candidate.pointer for candidate in group.candidates]) == (12, [[7, 22], [3, 7]])
    assert written == SHORT_BEAMS
    [group], _ = convert(content, "beams")
    assert group.id == "12"
    detailed = json.loads(json.dumps(BEAMS))
    detailed["12"]["id_list"] = [[22, 7], [7, 3]]
    for beam, ids in zip(detailed["12"]["beams"], detailed["12"]["id_list"], strict=True):
        beam["full_sequence"] = ids
    [group], written = convert(detailed, "beams", ("--integer_ids",))
    assert written == BEAMS


@pytest.mark.parametrize("details", [{"few_shot_num": 2}, {"shot_scores": [[1, 2], [3, 4]]}, {"other entries": True}])
def test_a_wrong_key_is_no_list_without_its_query(problems_of, details):
    wrong = {"13": {**SHORT_BEAMS["12"], **details}}
    content = {**SHORT_BEAMS, **wrong} if "other entries" in details else wrong
    assert problems_of(content) == [
        ", query 13: field 'id_list.0': expected 13, the key of this entry, found 12",
    ]
