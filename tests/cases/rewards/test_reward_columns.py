"""Columns that rewards read: presence and types in one place, answers in every form, and the last complete answer."""

import json

import numpy as np
import pytest

from data.io.records import RecordError
from data.rows.answers import AnswerError, read_answers
from data.vqa import VqaRecord
from rewards.eval import main
from rewards.registry import REWARDS, build_rewards, import_reward
from rewards.scoring.columns import ColumnError, check_columns
from rewards.vqa_accuracy import VqaAccuracy, read_answer

TEN = ["red"] * 10


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("red", ["red"]),
        (["red", "blue"], ["red", "blue"]),
        (("red",), ["red"]),
        ({"answer": TEN}, TEN),
        ({"text": ["red", "dark red"], "answer_start": [3, 8]}, ["red", "dark red"]),
        ({"answer": TEN, "answer_confidence": ["yes"] * 10, "answer_id": list(range(10))}, TEN),
        ({"text": None, "answer": "red"}, ["red"]),
        ([{"answer": "red"}, {"text": "blue"}, "green"], ["red", "blue", "green"]),
        ([], []),
    ],
)
def test_f08_answers_in_every_form(value, texts):
    assert read_answers(value) == texts


@pytest.mark.parametrize(
    "value",
    [
        5,
        True,
        0.5,
        None,
        [5],
        [None],
        ["red", True],
        [["red"]],
        {},
        {"a": ["red"]},
        {"answer": [5]},
        {"text": {}},
        [{}],
    ],
)
def test_f08_what_are_no_answers(value):
    with pytest.raises(AnswerError, match="expected a text, a list of texts, or objects with 'answer' or 'text'"):
        read_answers(value)


ONE = "(with one annotator, nothing earns more than 0 by the official rule), found "


@pytest.mark.parametrize("value", [["red"], ("red",), [{"answer": "red"}], {"text": ["red"], "answer_start": [3]}])
def test_f08_one_annotator_whom_no_others_can_agree_with_is_an_error(value):
    rewards = build_rewards(["vqa_accuracy"])
    rows = [{"answers": TEN}, {"id": "b", "answers": value}]
    with pytest.raises(ColumnError) as caught:
        check_columns(rewards, rows, "my.jsonl")
    where = "my.jsonl: row 'b': column 'answers', which reward 'vqa_accuracy' reads: expected the answers of several "
    assert str(caught.value).startswith(where)
    assert str(caught.value).endswith(f"{ONE}{value!r}")
    check_columns(build_rewards(["relevance"]), rows, "my.jsonl")


@pytest.mark.parametrize("value", ["red", {"answer": "red"}, ["red", "dark red"], None, TEN])
def test_f08_answers_that_something_can_match(value):
    check_columns(build_rewards(["vqa_accuracy"]), [{"answers": TEN}, {"answers": value}], "my.jsonl")


@pytest.mark.parametrize("reward", ["vqa_accuracy", "relevance"])
@pytest.mark.parametrize("value", [[], (), {"text": []}, np.array([])])
def test_f08_no_answers_are_an_error(reward, value):
    with pytest.raises(ColumnError) as caught:
        check_columns(build_rewards([reward]), [{"answers": TEN}, {"id": "b", "answers": value}], "my.jsonl")
    where = f"my.jsonl: row 'b': column 'answers', which reward '{reward}' reads: expected at least one answer"
    assert str(caught.value).startswith(where)


def test_f08_arrays_are_lists():
    answers = np.array(["red", "blue"])
    assert read_answers(answers) == read_answers({"answer": answers.astype(object)}) == ["red", "blue"]
    assert VqaAccuracy()(["red"], answers=[np.array(TEN)]) == [1.0]
    assert VqaRecord(question="?", answers=np.array(TEN), images=["a.png"]).answers == TEN
    check_columns(build_rewards(["vqa_accuracy", "relevance"]), [{"answers": answers}], "my.jsonl")
    rows = [{"ground_truth_agents": np.array(["blur_filter"])}]
    check_columns(build_rewards(["agent_selection"]), rows, "my.jsonl")


@pytest.mark.parametrize("value", ["<answer>red</answer>", ["red"] * 9 + ["<ANSWER>red"], ["a", "b</answer>"]])
def test_f08_answers_with_tags_that_no_completion_can_say(value):
    with pytest.raises(ColumnError, match="item [019]: expected an answer without <answer> tags, found '"):
        check_columns(build_rewards(["vqa_accuracy"]), [{"answers": value}], "my.jsonl")


def test_f08_a_text_is_one_answer_and_no_letters():
    reward = VqaAccuracy()
    assert reward(["red", "r", "answer"], answers=["red", "red", {"answer": TEN}]) == [1.0, 0.0, 0.0]
    assert reward(["red", "blue"], answers=[{"answer": "red"}, {"text": "red"}]) == [1.0, 0.0]
    assert reward(["red", "red"], answers=[{"answer": TEN}, {"text": TEN}]) == [1.0, 1.0]


WRONG = [
    ("vqa_accuracy", {"answers": 5}, "column 'answers', which reward 'vqa_accuracy' reads: expected a text"),
    ("vqa_accuracy", {"answers": ["red", 7]}, "item 1: expected a text"),
    ("relevance", {"answers": {"a": 1}}, "column 'answers'"),
    ("relevance", {"answers": "a\ud800"}, "half of a surrogate pair at character 1"),
    ("agent_selection", {"ground_truth_agents": {"blur_filter": 1}}, "expected a list of texts"),
    ("agent_selection", {"ground_truth_agents": ["blur_filter", None]}, "item 1: expected a text"),
    ("filtering_quality", {"ground_truth_filtered_data": "123", "pool": None}, "expected a list of ids"),
    ("filtering_quality", {"ground_truth_filtered_data": [1, True], "pool": None}, "item 1: expected an integer or"),
    ("filtering_quality", {"ground_truth_filtered_data": [1], "pool": ["p"]}, "column 'pool'.*expected a text"),
    ("combined", {"ground_truth_agents": 5, "ground_truth_filtered_data": [1]}, "expected a list of texts"),
    ("candidate", {"vqa_correct": "1"}, "column 'vqa_correct'.*expected a number"),
    ("beam_score", {"beam_score": [0.5]}, "column 'beam_score'.*expected a number"),
]


@pytest.mark.parametrize(("reward", "columns", "problem"), WRONG)
def test_f08_every_reward_checks_the_types_of_its_columns(reward, columns, problem):
    rewards = build_rewards([reward])
    rows = [{"id": "good", **dict.fromkeys(columns)}, {"id": "bad", **columns}]
    with pytest.raises(ColumnError, match=rf"my\.jsonl: row 'bad': .*{problem}"):
        check_columns(rewards, rows, "my.jsonl")
    with pytest.raises(ColumnError):  # called by itself, without that check
        rewards[0].function(["x"], **{name: [value] for name, value in columns.items()})


def test_f08_every_column_of_every_reward_has_a_type():
    for name in REWARDS:
        reward = import_reward(name)
        assert set(reward.types) == set(reward.columns), name


@pytest.mark.parametrize("rows", [[{"answers": None}], [{"answers": None}, {"answers": None}]])
def test_f08_a_column_of_nulls_is_as_good_as_missing(rows):
    with pytest.raises(ColumnError, match="'vqa_accuracy' needs the column 'answers', which is null in every row"):
        check_columns(build_rewards(["vqa_accuracy"]), rows, "my.jsonl")
    check_columns(build_rewards(["vqa_accuracy"]), [*rows, {"answers": TEN}], "my.jsonl")


def test_f08_the_command_ends_before_anything_is_scored(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"id": 1, "completion": "red", "answers": "red"}, {"id": 2, "completion": "red", "answers": 5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset_name", str(path), "--rewards", "vqa_accuracy", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="error: .*a.jsonl: row 2: column 'answers'"):
        main(arguments)
    assert not (tmp_path / "out").exists()


def test_f08_a_column_error_is_an_error_of_records():
    """So every command that reports those reports these too."""
    assert issubclass(ColumnError, RecordError)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>red</answer>", "red"),
        ("<answer>red</answer></answer>", "red"),
        ("<answer>\nred\n</answer>\n</answer>", "\nred\n"),
        ("<answer><answer>red</answer></answer>", "red"),
        ("<answer>red</answer> I closed it with </answer>.", "red"),
        ("<answer>blue</answer><answer>red</answer></answer></answer>", "red"),
        ("<answer>red</answer> and then <answer>bl", "red"),
        ("</answer><answer>red</answer>", "red"),
        ("<answer>red", "<answer>red"),
        ("red</answer>", "red</answer>"),
        ("</answer>red<answer>", "</answer>red<answer>"),
        ("<answer></answer>", ""),
        ("red", "red"),
        ("<ANSWER>red</ANSWER>", "red"),
        ("<Answer>red</aNSWER>", "red"),
        ("\u0130\u0130 <ANSWER>red</answer>", "red"),  # a letter that has two in lower case
    ],
)
def test_f11_the_last_complete_element_is_the_answer(text, answer):
    assert read_answer(text) == answer


@pytest.mark.parametrize("text", ["<answer>red</answer></answer>", "<answer><answer>red</answer></answer>"])
def test_f11_a_closing_tag_too_many_earns_the_reward(text):
    assert VqaAccuracy()([text], answers=[TEN]) == [1.0]
