"""`rewards.score --reward`: the responses of a row are a group, and its other fields are columns."""

import json

import pytest
from PIL import Image

from rewards import score

OWN = """
def agreement(completions, prompt, images, answers, step=1.0, **columns):
    assert {str(one) for one in prompt} == {prompt[0]}
    assert all(str(one[0]).endswith("red.png") for one in images)
    return [None if text == "?" else step * completions.count(text) + (text in answers[0]) for text in completions]


agreement.scores_groups = True
"""


@pytest.fixture
def rows(tmp_path, own_module) -> list[str]:
    own_module("own_scores", OWN)
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    asked = {"id": "same", "query": "What?", "image": "red.png", "answers": ["b"]}
    found = [
        {**asked, "response": ["a", "b", "a", "?"]},
        {**asked, "response": "b"},
        {**asked, "response": ["b", "b"]},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    (tmp_path / "r.yaml").write_text("reward_funcs: [{name: own_scores.agreement, step: 10}]", encoding="utf-8")
    return ["--dataset_name", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]


def test_a_reward_of_groups_scores_the_responses_of_each_row(rows, tmp_path, read_jsonl):
    score.main([*rows, "--reward", "own_scores.agreement", "--config", str(tmp_path / "r.yaml")])
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [row.get("scores", row.get("score")) for row in found] == [[20, 11, 20, None], 11, [21, 21]]
    assert [row["query"] for row in found] == ["What?"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --model or --reward"),
        (["--reward", "relevance", "--model", "m"], "give either --model or --reward"),
        (["--model", "m", "--config", "r.yaml"], "--config is for --reward"),
    ],
)
def test_options_that_do_not_go_together(rows, options, message, capsys):
    with pytest.raises(SystemExit):
        score.main([*rows, *options])
    assert message in capsys.readouterr().err


def test_a_column_that_the_reward_needs_is_named(rows, tmp_path):
    with pytest.raises(SystemExit, match="reward 'agent_selection' needs the column 'ground_truth_agents'"):
        score.main([*rows, "--reward", "agent_selection"])
    assert not (tmp_path / "out.jsonl").exists()
