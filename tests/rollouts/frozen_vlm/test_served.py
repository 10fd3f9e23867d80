"""A VLM behind an address that is shown examples: asked in the right order, with the right pictures, and once."""

import json

import pytest
from chat_server import FaultyChatServer, picture_of

from data.candidate_groups import load_groups
from data.io.images import open_image
from data.io.records import read_rows
from data.vqa import common_answer, load_records
from models.served import attempts
from rewards.vqa_accuracy import vqa_accuracy
from rollouts import candidates, in_context


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)


def shown_last(body: dict) -> list[str]:
    """The answer of the example that is shown last."""
    answers = [turn["content"][0]["text"] for turn in body["messages"] if turn["role"] == "assistant"]
    return [f"{answers[-1]}\nQuestion:" if answers else "nothing"]


def command(folder, server, *more) -> list[str]:
    words = ["--dataset_name", folder, "--pools", folder / "pools-test.jsonl", "--model", server.address]
    return [str(word) for word in (*words, "--shots", 1, 2, "--concurrency", 3, *more)]


def evaluation(folder, server, output, *more) -> list[str]:
    options = ["--methods", "zero_shot", "random", "--construct_order", "right", "--output_dir", output]
    return command(folder, server, "--examples", folder, *options, *more)


def error_of(main, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return str(ended.value.code)


def test_answers_are_to_what_was_shown(selection_files, tmp_path):
    def faults(number, body):
        return ("503", "half json", "fewer", "reset")[number // 4 % 4] if number % 4 == 3 else None

    with FaultyChatServer(faults, answer=shown_last, owner="vllm") as server:
        in_context.main(evaluation(selection_files, server, tmp_path))
        assert {body["repetition_penalty"] for body in server.bodies} == {1.0}
        asked = [json.dumps(body["messages"]) for body in server.answered]
        assert len(set(asked)) == len(asked)
        bodies = server.answered
    queries = load_records(selection_files, "test")
    examples = {record.id: record for record in load_records(selection_files)}
    for path in (tmp_path / "answers").glob("*.jsonl"):
        for (_, row), query in zip(read_rows(path), queries, strict=True):
            expected = common_answer(examples[row["examples"][-1]]) if row["examples"] else "nothing"
            assert row["answer"] == expected
            assert row["accuracy"] == vqa_accuracy(expected, query.answers)
    turns = next(body["messages"] for body in bodies if len(body["messages"]) == 6)  # system, two examples, a query
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    question = turns[-1]["content"][-1]["text"]
    pictures = [open_image(query.images[0]).tobytes() for query in queries if query.question == question]
    assert picture_of(turns[-1]["content"][0]).tobytes() in pictures


def test_an_evaluation_goes_on_and_asks_nothing_twice(selection_files, tmp_path):
    with FaultyChatServer(answer=shown_last) as server:
        in_context.main(evaluation(selection_files, server, tmp_path / "whole"))
        needed = len(server.bodies)
    with FaultyChatServer(lambda number, body: "HTTP 400" if number == 10 else None, answer=shown_last) as server:
        assert "HTTP 400" in error_of(in_context.main, evaluation(selection_files, server, tmp_path / "stopped"))
        for _ in range(2):
            in_context.main(evaluation(selection_files, server, tmp_path / "stopped"))
        assert len(server.bodies) == needed + 1
    whole, stopped = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "answers").iterdir()}
        for name in ("whole", "stopped")
    )
    assert whole == stopped


def test_candidates_are_scored_by_what_the_server_answers(selection_files, tmp_path):
    options = ["--queries", selection_files, "--queries_split", "test", "--num_retrieval", 0, "--num_random", 3]
    with FaultyChatServer(answer=shown_last) as server:
        words = command(selection_files, server, *options, "--output", tmp_path / "candidates.jsonl")
        assert "--gt_prob needs the probabilities of given answers" in error_of(candidates.main, [*words, "--gt_prob"])
        candidates.main(words)
        asked = len(server.bodies)
        candidates.main([*words, "--restart"])
        assert len(server.bodies) == 2 * asked, "answers of what was discarded were taken"
    groups = load_groups(tmp_path / "candidates.jsonl")
    assert len(groups) == 24
    assert {candidate.reward for group in groups for candidate in group.candidates} > {0.0}


def test_what_a_server_cannot_do_is_said_before_it_is_asked(selection_files, tmp_path):
    with FaultyChatServer() as server:
        words = evaluation(selection_files, server, tmp_path)
        found = error_of(in_context.main, [*words, "--generation_beams", "3"])
        assert found.endswith("a server is asked for the likeliest token each time; expected 1, found 3")
        found = error_of(in_context.main, [*words, "--dtype", "float32"])
        assert found == "error: --dtype: is for a model that is loaded here; a server has its own"
        assert server.keys == []
    assert "/models: found connect error" in error_of(in_context.main, [*words, "--examples_split", "nowhere"])
