"""Earlier systems' beams and RL data: to groups, and back without a difference."""

import json

import pytest

from data.candidate_groups import group_row, load_groups, main, write_groups
from data.candidates.legacy_formats import EarlierFormat, rl_entry
from data.candidates.pools import write_pools
from data.io.records import RecordError

SEED = {  # as the design note of the RL data shows it
    "12": {
        "pointer_candidates": [
            {
                "pointer": [7, 22],
                "gen_method": "beam",
                "beam_rank": 0,
                "beam_score": 2.13,
                "logprob_score": -1.56,
                "temperature": None,
                "vqa_pred_answer": "a book",
                "vqa_correct": 1,
                "vqa_acc_score": 1.0,
            },
            {
                "pointer": [5, 18],
                "gen_method": "sample",
                "beam_rank": None,
                "beam_score": None,
                "logprob_score": -2.03,
                "temperature": 1.0,
                "vqa_pred_answer": "a notebook",
                "vqa_correct": 1,
                "vqa_acc_score": 0.9,
            },
            {
                "pointer": [3, 9],
                "gen_method": "random",
                "beam_rank": None,
                "beam_score": None,
                "logprob_score": None,
                "temperature": None,
                "vqa_pred_answer": "a phone",
                "vqa_correct": 0,
                "vqa_acc_score": 0.0,
            },
        ]
    }
}
POOL = [9, 7, 18, 22, 3, 5]
QUERY = {"query_id": 12, "question_id": 120, "image_id": 3, "question": "what?", "gt_answers_raw": ["a book"]}


def with_positions(form: str) -> dict:
    """The seed's data with a query and a pool, in the global or the local form."""
    candidates = []
    for candidate in SEED["12"]["pointer_candidates"]:
        ids = candidate["pointer"]
        positions = [POOL.index(item) for item in ids]
        pointers = {"pointer": ids, "pointer_pos": positions} if form == "global" else {}
        pointers = pointers or {"pointer": positions, "pointer_global": ids}
        candidates.append({**candidate, **pointers, "vqa_eval_mode": "vqaEval", "eval_failed": False})
    return {"12": {"query": QUERY, "candidate_pool_ids": POOL, "pointer_candidates": candidates}}


BEAMS = {
    "12": {
        "beams": [
            {
                "shots": [{"id": 7, "score": 0.5}, {"id": 22, "score": 0.25}],
                "final_score": 0.25,
                "full_sequence": [22, 7, 12],
            },
            {
                "shots": [{"id": 3, "score": 0.5}, {"id": 7, "score": -0.125}],
                "final_score": -0.125,
                "full_sequence": [7, 3, 12],
            },
        ],
        "few_shot_num": 2,
        "id_list": [[22, 7, 12], [7, 3, 12]],
        "score_list": [0.25, -0.125],
        "shot_scores": [[0.5, 0.25], [0.5, -0.125]],
    }
}
SHORT_BEAMS = {"12": {"id_list": [[22, 7, 12], [7, 3, 12]], "score_list": [0.25, -0.125]}}


@pytest.fixture
def convert(tmp_path):
    """Function: content of a JSON file, options for reading it and for writing it -> groups, what is written back."""

    def run(content, to: str, reading: tuple[str, ...] = (), writing: tuple[str, ...] = ()):
        paths = [tmp_path / name for name in ("in.json", "groups.jsonl", "out.json")]
        paths[0].write_text(json.dumps(content), encoding="utf-8")
        main(["--dataset_name", str(paths[0]), "--output", str(paths[1]), *reading])
        main(["--dataset_name", str(paths[1]), "--output", str(paths[2]), "--to", to, *writing])
        return load_groups(paths[1]), json.loads(paths[2].read_text(encoding="utf-8"))

    return run


@pytest.fixture
def problems_of(tmp_path):
    """Function: content of a JSON file -> what is wrong with it, without the path."""

    def run(content, **options) -> list[str]:
        path = tmp_path / "in.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(RecordError) as caught:
            load_groups(path, **options)
        return [problem.removeprefix(str(path)) for problem in caught.value.problems]

    return run


# -- RL data ----------------------------------------------------------------------------------------------------------


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


# -- beams ------------------------------------------------------------------------------------------------------------


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


# -- positions --------------------------------------------------------------------------------------------------------

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


# -- the file as a whole ----------------------------------------------------------------------------------------------


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
