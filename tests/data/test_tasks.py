"""Rows that trainers share: which task a file is of, its columns, its gold answers, and its errors."""

from xml.etree import ElementTree

import pytest

from data.io.records import RecordError
from data.tasks import load_rows

SELECTION = {
    "report": "Blurry & dark.",
    "ground_truth_agents": ["blur_filter", "a<b"],
    "ground_truth_filtered_data": [1, "x"],
    "ground_truth_prompts": {"a<b": 'keep x < 3 & y > "2"'},
}
QUESTION = {"question": "What colour?", "answers": ["red", "blue", "blue"], "image": "p.png"}
CHAT = {"prompt": [{"role": "user", "content": "Hello"}], "solution": 5}


def _rows(path, **options) -> list[dict]:
    return load_rows(path, "train", check_files=False, **options)


def _problems(path) -> list[str]:
    with pytest.raises(RecordError) as caught:
        _rows(path)
    return caught.value.problems


def test_a_selection_row_has_the_columns_of_its_rewards(write_lines):
    path = write_lines("a.jsonl", {**SELECTION, "pool": "pool", "images": ["p.png"]})
    (row,) = _rows(path, agents=[("blur_filter", "removes unsharp pictures"), ("zoom", "enlarges")])
    gold, messages = row.pop("gold"), row.pop("prompt")
    assert row == {
        "id": 0,
        "images": [str(path.parent / "p.png")],
        "ground_truth_agents": ["blur_filter", "a<b"],
        "ground_truth_filtered_data": [1, "x"],
        "pool": str(path.parent / "pool"),
    }
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "\n- blur_filter: removes unsharp pictures\n- zoom: enlarges\n" in messages[0]["content"]
    assert messages[1]["content"] == "Blurry & dark."
    agents = ElementTree.fromstring(gold).findall("agents/agent")
    assert [(agent.findtext("name"), agent.findtext("prompt")) for agent in agents] == [
        ("blur_filter", "use the default"),
        ("a<b", 'keep x < 3 & y > "2"'),
    ]


def test_a_question_row_has_the_most_common_answer_as_gold(write_lines):
    path = write_lines("a.jsonl", {**QUESTION, "id": "q7"})
    (row,) = _rows(path)
    assert (row["id"], row["gold"], row["answers"]) == ("q7", "blue", ["red", "blue", "blue"])
    assert row["images"] == [str(path.parent / "p.png")]
    assert row["prompt"][-1] == {"role": "user", "content": "What colour?"}


def test_answer_tags_are_asked_for_and_stand_in_the_gold_answer(write_lines):
    (row,) = _rows(write_lines("a.jsonl", QUESTION), answer_tags=True)
    assert row["gold"] == "<answer>blue</answer>"
    assert "<answer>" in row["prompt"][0]["content"]


def test_a_chat_row_keeps_its_prompt_and_further_columns(write_lines):
    path = write_lines("a.jsonl", CHAT, {**CHAT, "id": "x", "image": "p.png"}, {**CHAT, "images": ["q.png", "p.png"]})
    rows = _rows(path)
    assert rows == [
        {**CHAT, "id": 0, "images": []},
        {**CHAT, "id": "x", "images": [str(path.parent / "p.png")]},
        {**CHAT, "id": 2, "images": [str(path.parent / "q.png"), str(path.parent / "p.png")]},
    ]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt": 7}, "field 'prompt': expected a text, or a list of chat messages with 'role' and 'content'"),
        ({"prompt": []}, "field 'prompt': expected a text, or a list of chat messages"),
        ({"prompt": ["Hello"]}, "field 'prompt.0': Input should be a valid dictionary"),
        (
            {"prompt": [{"role": "user"}]},
            "field 'prompt.0.content': expected a text, and this one is empty",
        ),
        ({"prompt": [{"content": "Hello"}]}, "field 'prompt.0.role': Field required"),
        ({"images": 5}, "field 'images': expected a path, bytes or an image (found 5)"),
    ],
)
def test_a_malformed_chat_row_names_line_and_field(write_lines, fields, problem):
    path = write_lines("a.jsonl", CHAT, {**CHAT, **fields})
    (found,) = _problems(path)
    assert found.startswith(f"{path}:2: {problem}")


def test_a_row_that_is_no_object_is_named(write_lines):
    path = write_lines("a.jsonl", CHAT, [1])
    assert _problems(path)[0].startswith(f"{path}:2: field 'the row': Input should be a valid dictionary")


@pytest.mark.parametrize("row", [SELECTION, QUESTION, CHAT], ids=["selection", "question", "chat"])
def test_a_broken_first_line_does_not_hide_the_task(write_lines, row):
    path = write_lines("a.jsonl", b"{broken", row)
    (problem,) = _problems(path)
    assert problem.startswith(f"{path}:1: column 2: not valid JSON")


def test_a_limit_reads_no_further(write_lines):
    path = write_lines("a.jsonl", CHAT, CHAT, b"{broken")
    assert len(_rows(path, limit=2)) == 2


def test_an_empty_file_is_named(write_lines):
    path = write_lines("a.jsonl")
    assert _problems(path) == [f"{path}: the train split has no rows"]


def test_rows_without_an_id_are_numbered(write_lines):
    rows = _rows(write_lines("a.jsonl", SELECTION, {**SELECTION, "id": "own"}, SELECTION))
    assert [row["id"] for row in rows] == [0, "own", 2]
