"""The format of candidate groups: reading, writing, what is refused, and the command."""

import json

import pytest
from PIL import Image

from data.candidate_groups import (
    Candidate,
    CandidateGroup,
    candidate_rows,
    group_row,
    load_groups,
    main,
    write_groups,
)
from data.io.records import RecordError

ROWS = [
    {
        "id": 17,
        "pool": [5, 6, 7, "e8"],
        "question": "what?",
        "candidates": [
            {"pointer": [7, 5], "reward": 1, "scores": {"vqa_accuracy": 1.0, "other": None}, "gen_method": "beam"},
            {"pointer": ["e8"], "reward": None, "temperature": 1.3, "vqa_correct": 0, "own": [1, {"a": 2}]},
        ],
    },
    {"id": "q", "candidates": [{"pointer": [5, 6, 7], "step_scores": [0.1, -2, 3], "beam_rank": 0}]},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "groups.jsonl"


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def problems_of(path, rows, **options) -> list[str]:
    """What is wrong with the rows, without the path."""
    write(path, rows)
    with pytest.raises(RecordError) as caught:
        load_groups(path, **options)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


def test_groups_come_back_as_written(path):
    write(path, ROWS)
    groups = load_groups(path)
    assert [group_row(group) for group in groups] == ROWS
    write_groups(path.with_name("again.jsonl"), groups)
    assert read(path.with_name("again.jsonl")) == ROWS


def test_fields_have_their_types(path):
    write(path, ROWS)
    first, second = load_groups(path, example_ids={5, 6, 7, "e8"})
    assert (first.id, first.pool, first.kind, first.question) == (17, [5, 6, 7, "e8"], "pointer", "what?")
    assert first.candidates[0].pointer == [7, 5]
    assert first.candidates[0].reward == 1.0
    assert first.candidates[0].scores == {"vqa_accuracy": 1.0, "other": None}
    assert (first.candidates[1].reward, first.candidates[1].beam_score, first.candidates[1].own) == (
        None,
        None,
        [1, {"a": 2}],
    )
    assert (second.pool, second.candidates[0].step_scores) == (None, [0.1, -2.0, 3.0])


def test_groups_made_in_code_are_stored(path):
    group = CandidateGroup(id=1, candidates=[Candidate(completion="a"), Candidate(completion="b", reward=0.5)])
    group.candidates[0].reward = 0.25
    write_groups(path, [group])
    rows = [{"completion": "a", "reward": 0.25}, {"completion": "b", "reward": 0.5}]
    assert json.loads(path.read_text(encoding="utf-8")) == {"id": 1, "candidates": rows}
    assert load_groups(path)[0].kind == "completion"


def test_true_and_false_are_0_and_1(path):
    write(path, [{"id": 1, "candidates": [{"pointer": [1], "vqa_correct": True}]}])
    assert load_groups(path)[0].candidates[0].vqa_correct is not True
    assert load_groups(path)[0].candidates[0].vqa_correct == 1


def test_a_row_for_each_candidate():
    first, second = candidate_rows(CandidateGroup.model_validate(ROWS[0]))
    assert (first["id"], first["generation"], first["question"], first["completion"]) == (17, 0, "what?", "")
    assert (second["generation"], second["vqa_correct"], second["beam_score"], second["own"]) == (
        1,
        0,
        None,
        [1, {"a": 2}],
    )
    group = CandidateGroup(id=1, candidates=[Candidate(completion="yes")], answers=["yes"])
    assert (candidate_rows(group)[0]["completion"], candidate_rows(group)[0]["answers"]) == ("yes", ["yes"])


def test_images_are_found_from_the_file(path):
    Image.new("RGB", (9, 9)).save(path.with_name("a.png"))
    row = {"id": 1, "images": ["a.png"], "candidates": [{"completion": "x"}]}
    write(path, [row])
    assert load_groups(path)[0].images == [str(path.with_name("a.png").resolve())]
    assert problems_of(path, [row, {**row, "id": 2, "images": ["b.png"]}, {**row, "id": 3, "images": [7]}]) == [
        ":3: field 'images.0': expected a path, bytes or an image (found 7)",
        f":2: field 'images': {path.with_name('b.png').resolve()}: no such image file",
    ]
    write(path, [{**row, "images": ["b.png"]}])
    assert load_groups(path, check_files=False)[0].images == [str(path.with_name("b.png").resolve())]


def test_groups_of_a_data_set_have_none_where_fields_are_missing(tmp_path):
    from datasets import Dataset

    candidates = [{"pointer": [5], "reward": 0.5}, {"pointer": [6, 5], "vqa_acc_score": 1.0}]
    Dataset.from_list([{"id": 1, "candidates": candidates}]).to_parquet(str(tmp_path / "groups.parquet"))
    [group] = load_groups(tmp_path / "groups.parquet")
    assert [candidate.pointer for candidate in group.candidates] == [[5], [6, 5]]
    assert [candidate.reward for candidate in group.candidates] == [0.5, None]
    assert (group.candidates[1].vqa_acc_score, group.pool) == (1.0, None)


def test_a_folder_has_splits(path, tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "dev.jsonl", ROWS[1:])
    assert len(load_groups(tmp_path)) == 2
    assert [group.id for group in load_groups(tmp_path, "dev")] == ["q"]


def test_a_query_may_have_a_group_for_each_number_of_shots(path):
    rows = [
        {"id": 1, "shots": 1, "candidates": [{"pointer": [5]}]},
        {"id": 1, "shots": 2, "candidates": [{"pointer": [5, 6]}]},
    ]
    write(path, rows)
    write_groups(path.with_name("again.jsonl"), load_groups(path))
    assert read(path.with_name("again.jsonl")) == rows
    assert problems_of(path, [*rows, rows[1]]) == [f":3: field 'id': duplicate 1 with 2 shots, first at {path}:2"]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"pointer": []}, "field 'candidates.0.pointer': expected at least one id (found [])"),
        ({"pointer": [5, 5]}, "field 'candidates.0.pointer': duplicate id 5 (found [5, 5])"),
        ({"pointer": 5}, "field 'candidates.0.pointer': expected a list of ids (found 5)"),
        (
            {"pointer": [5, None]},
            "field 'candidates.0.pointer': item 1: expected an integer or a text, found None (found [5, None])",
        ),
        ({"pointer": [9]}, "field 'candidates.0.pointer': expected ids of the group's pool (found [9])"),
        ({"pointer": ["5"]}, "field 'candidates.0.pointer': expected ids of the group's pool (found ['5'])"),
        (
            {"pointer": [5], "completion": "x"},
            "field 'candidates.0': expected either 'pointer' or 'completion', found both "
            "(found {'pointer': [5], 'completion': 'x'})",
        ),
        (
            {"reward": 1},
            "field 'candidates.0': expected either 'pointer' or 'completion', found neither (found {'reward': 1.0})",
        ),
        ({"completion": 5}, "field 'candidates.0.completion': Input should be a valid string (found 5)"),
        (
            {"pointer": [5], "reward": float("nan")},
            "field 'candidates.0.reward': expected a finite number (found nan)",
        ),
        (
            {"pointer": [5], "beam_score": float("inf")},
            "field 'candidates.0.beam_score': expected a finite number (found inf)",
        ),
        (
            {"pointer": [5], "scores": {"a": -float("inf")}},
            "field 'candidates.0.scores.a': expected a finite number (found -inf)",
        ),
        (
            {"pointer": [5], "own": {"a": [1.5, float("nan")]}},
            "field 'candidates.0.own.a.1': expected a finite number (found nan)",
        ),
        ({"pointer": [5], "reward": "1"}, "field 'candidates.0.reward': Input should be a valid number (found '1')"),
        ({"pointer": [5], "reward": True}, "field 'candidates.0.reward': Input should be a valid number (found True)"),
        (
            {"pointer": [5], "vqa_acc_score": 55},
            "field 'candidates.0.vqa_acc_score': expected 0 to 1 (percentages are not converted) (found 55)",
        ),
        (
            {"pointer": [5], "vqa_acc_score": 1.0001},
            "field 'candidates.0.vqa_acc_score': expected 0 to 1 (percentages are not converted) (found 1.0001)",
        ),
        ({"pointer": [5], "vqa_correct": 2}, "field 'candidates.0.vqa_correct': expected 0 or 1 (found 2)"),
        ({"pointer": [5], "vqa_correct": 0.5}, "field 'candidates.0.vqa_correct': expected 0 or 1 (found 0.5)"),
        (
            {"pointer": [5], "beam_rank": -1},
            "field 'candidates.0.beam_rank': Input should be greater than or equal to 0 (found -1)",
        ),
        (
            {"pointer": [5], "temperature": -1},
            "field 'candidates.0.temperature': Input should be greater than or equal to 0 (found -1)",
        ),
        (
            {"pointer": [5, 6], "step_scores": [1]},
            "field 'candidates.0.step_scores': expected 2 scores, one for each id of the pointer (found [1.0])",
        ),
    ],
)
def test_a_wrong_candidate_is_named_with_its_field(path, candidate, message):
    assert problems_of(path, [{"id": 1, "pool": [5, 6], "candidates": [candidate]}]) == [f":1: {message}"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"candidates": [{"pointer": [5]}]}, "field 'id': Field required (found missing)"),
        ({"id": None, "candidates": [{"pointer": [5]}]}, "field 'id': expected an integer or a text (found None)"),
        ({"id": 1.5, "candidates": [{"pointer": [5]}]}, "field 'id': expected an integer or a text (found 1.5)"),
        ({"id": 1}, "field 'candidates': Field required (found missing)"),
        (
            {"id": 1, "candidates": []},
            "field 'candidates': List should have at least 1 item after validation, not 0 (found [])",
        ),
        ({"id": 1, "candidates": {}}, "field 'candidates': Input should be a valid list (found {})"),
        ({"id": 1, "pool": [], "candidates": [{"pointer": [5]}]}, "field 'pool': expected at least one id (found [])"),
        (
            {"id": 1, "pool": [5, 5], "candidates": [{"pointer": [5]}]},
            "field 'pool': duplicate id 5 (found [5, 5])",
        ),
        (
            {"id": 1, "candidates": [{"pointer": [5]}, {"completion": "x"}]},
            "field 'candidates.1': expected a pointer, as the group's first candidate is, found a completion "
            "(found {'completion': 'x'})",
        ),
        (
            {"id": 1, "candidates": [{"pointer": [5]}], "weight": float("inf")},
            "field 'weight': expected a finite number (found inf)",
        ),
    ],
)
def test_a_wrong_group_is_named_with_its_field(path, row, message):
    assert problems_of(path, [row]) == [f":1: {message}"]


def test_every_problem_of_every_line_is_reported(path):
    write(path, ROWS)
    path.write_text(path.read_text(encoding="utf-8") + '{"id": 3, "candi\n[]\n', encoding="utf-8")
    good = path.read_text(encoding="utf-8")
    more = [
        {"id": 17, "candidates": [{"pointer": [5]}]},
        {"id": 18, "candidates": [{"completion": "x"}]},
        {"id": 19, "candidates": [{"pointer": [5], "reward": "x", "beam_rank": "y"}, {"pointer": [5, 5]}]},
    ]
    path.write_text(good + "".join(json.dumps(row) + "\n" for row in more), encoding="utf-8")
    with pytest.raises(RecordError) as caught:
        load_groups(path)
    problems = [problem.removeprefix(str(path)) for problem in caught.value.problems]
    assert problems == [
        ':3: column 11: not valid JSON: Unterminated string starting at (found \'{"id": 3, "candi\')',
        ":4: field 'the row': Input should be a valid dictionary or instance of CandidateGroup (found [])",
        f":5: field 'id': duplicate 17, first at {path}:1",
        f":6: field 'candidates': expected pointers as in {path}:1, found completions",
        ":7: field 'candidates.0.reward': Input should be a valid number (found 'x')",
        ":7: field 'candidates.0.beam_rank': Input should be a valid integer (found 'y')",
        ":7: field 'candidates.1.pointer': duplicate id 5 (found [5, 5])",
    ]


def test_pointers_and_pools_must_be_of_the_data_set(path):
    assert problems_of(path, ROWS, example_ids=[5, 7, "e8"]) == [
        ":1: field 'pool': expected ids of the examples' data set, found [6]",
        ":2: field 'candidates.0.pointer': expected ids of the examples' data set, found [6]",
    ]


def test_a_file_without_groups_is_an_error(path):
    path.touch()
    with pytest.raises(RecordError, match="expected at least one group, found none"):
        load_groups(path)


def test_what_could_not_be_read_is_not_written(path):
    group = CandidateGroup.model_validate(ROWS[0])
    with pytest.raises(RecordError, match="field 'id': duplicate 17"):
        write_groups(path, [group, group])
    group.candidates[0].reward = float("nan")
    with pytest.raises(RecordError, match="group 17: cannot be stored as JSON: Out of range float values"):
        write_groups(path, [group])
    picture = CandidateGroup(id=1, candidates=[{"completion": "x"}], images=[Image.new("RGB", (9, 9))])
    with pytest.raises(RecordError, match="group 1: cannot be stored as JSON: Object of type Image"):
        write_groups(path, [picture])
    half = CandidateGroup(id=2, candidates=[{"completion": "x", "own": "\ud83d"}])
    with pytest.raises(RecordError, match="group 2: cannot be stored as JSON: 'utf-8' codec"):
        write_groups(path, [half])
    assert list(path.parent.iterdir()) == []


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_checks_and_copies(path, capsys):
    write(path, ROWS)
    main(["--dataset_name", str(path)])
    main(["--dataset_name", str(path), "--output", str(path.with_name("copy.jsonl"))])
    assert capsys.readouterr().out.splitlines() == [
        "2 groups with 3 candidates: no problems found",
        f"2 groups with 3 candidates written to {path.with_name('copy.jsonl')}",
    ]
    assert read(path.with_name("copy.jsonl")) == ROWS


def test_the_command_looks_ids_up_in_the_examples(path, tmp_path):
    write(path, [{"id": 1, "candidates": [{"pointer": [0, 2]}]}])
    record = {"question": "q", "answers": ["a"], "image": "none.png"}
    write(tmp_path / "train.jsonl", [record] * 3)
    main(["--dataset_name", str(path), "--examples", str(tmp_path)])
    write(tmp_path / "dev.jsonl", [{**record, "id": number} for number in (0, 1)])
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--examples", str(tmp_path), "--split", "dev"])
    message = "field 'candidates.0.pointer': expected ids of the examples' data set, found [2]"
    assert caught.value.code == f"error: {path}:1: {message}"
    write(tmp_path / "train.jsonl", [record, {**record, "id": 0}])
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--examples", str(tmp_path)])
    assert "field 'id': 0 is record 1's id too" in caught.value.code


def test_the_command_takes_groups_of_one_number_of_shots(path):
    rows = [{"id": 1, "shots": shots, "candidates": [{"pointer": list(range(shots))}]} for shots in (1, 2)]
    write(path, rows)
    output = path.with_name("rl.json")
    main(["--dataset_name", str(path), "--output", str(output), "--to", "rl", "--shots", "2"])
    candidates = [{"pointer": [0, 1]}]
    entry = {"query": {"query_id": 1}, "shots": 2, "pointer_candidates": candidates}
    assert json.loads(output.read_text(encoding="utf-8")) == {"1": entry}
    assert [group_row(group) for group in load_groups(output)] == [{**rows[1], "query": {"query_id": 1}}]
    with pytest.raises(SystemExit) as caught:
        main(["--dataset_name", str(path), "--output", str(output), "--to", "rl", "--shots", "3"])
    assert caught.value.code == f"error: {path}: field 'shots': no group has 3"


def test_the_command_ends_with_status_1_and_one_message(path, run_command):
    write(path, [{"id": 1, "candidates": []}])
    done = run_command("-m", "data.candidate_groups", "--dataset_name", path, "--output", path.with_name("out.jsonl"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}:1: field 'candidates': List should have at least 1 item")
    assert not path.with_name("out.jsonl").exists()
    missing = run_command("-m", "data.candidate_groups", "--dataset_name", path.with_name("no.jsonl"))
    assert (missing.returncode, "no such file" in missing.stderr) == (1, True)


def test_completions_cannot_become_pointers(path):
    write(path, [{"id": 1, "candidates": [{"completion": "x"}]}])
    for form in ("rl", "beams"):
        with pytest.raises(SystemExit) as caught:
            main(["--dataset_name", str(path), "--output", str(path.with_name("o.json")), "--to", form])
        assert caught.value.code == (
            "error: group 1: field 'candidates.0.pointer': missing; this format has no place for completions"
        )
    assert not path.with_name("o.json").exists()
