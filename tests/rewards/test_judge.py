"""A judge as a reward: its scores, what it asks, and what becomes of failures, unreadable votes and spent calls."""

import json
import logging
import re
from typing import Any

import pytest
from chat_server import FaultyChatServer, picture_of
from grpo_runs import G, make_trainer, picture, questions
from judges import prefers, responses_in
from PIL import Image

from data.errors import UserError
from models.served import attempts
from rewards.eval import main
from rewards.registry import RewardSpecError, build_reward
from rewards.scoring.failure_policy import GuardedReward
from rewards.scoring.guards import scores_of


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.001)


def judge_at(server: FaultyChatServer, **settings: Any) -> GuardedReward:
    return build_reward({"name": "judge", "model": server.address, **settings})


def scores(reward: GuardedReward, *groups: list[str], **columns: Any) -> list[list[float | None]]:
    """Of each group."""
    texts = [text for group in groups for text in group]
    labels = [number for number, group in enumerate(groups) for _ in group]
    columns = {"prompts": ["Which is longest?"] * len(texts), **columns}
    found = iter(scores_of(reward, texts, columns, labels))
    return [[next(found) for _ in group] for group in groups]


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_shares_of_wins_in_each_group():
    with FaultyChatServer(answer=prefers(len)) as server:
        reward = judge_at(server)
        assert scores(reward, ["a", "bb", "ccc", "bb"], ["dddd", "e"]) == [[0.0, 0.5, 1.0, 0.5], [1.0, 0.0]]
        asked = [tuple(responses_in(body)) for body in server.bodies]
        assert ("a", "ccc") in asked
        assert ("ccc", "a") in asked
        assert len(asked) == len(set(asked)) == 2 * 3 + 2  # equal responses are no question, nor asked about twice
        assert reward.function.figures()["order_agreement"] == 1.0


def test_a_judge_that_prefers_a_place_tells_no_responses_apart():
    with FaultyChatServer(answer=prefers(lambda text: 0)) as server:
        reward = judge_at(server)
        assert scores(reward, ["a", "bb", "ccc"]) == [[0.5] * 3]
        assert reward.function.figures()["order_agreement"] == 0.0


def test_sampled_opponents_bound_the_questions():
    with FaultyChatServer(answer=prefers(len)) as server:
        [found] = scores(judge_at(server, opponents=2), ["a" * (number + 1) for number in range(8)])
        assert len(server.bodies) == 8 * 2
        assert (found[0], found[-1]) == (0.0, 1.0)


def test_a_pointwise_judge_places_each_response_on_its_scale():
    def answer(body):
        return [f"<score>{len(responses_in(body)[0])}</score>"] * body["n"]

    with FaultyChatServer(answer=answer) as server:
        reward = judge_at(server, mode="pointwise", scale=[0, 4], rubric="Long ones are good.")
        assert scores(reward, ["a", "bbb", ""], ["cccc", "a"]) == [[0.25, 0.75, 0.0], [1.0, 0.25]]
        assert len(server.bodies) == 4
        assert server.bodies[0]["messages"][0]["content"][0]["text"].startswith("Long ones are good.\n")


def test_the_majority_of_several_votes_counts_and_their_agreement_is_told():
    def answer(body):
        right = prefers(len)(body)
        wrong = prefers(lambda text: -len(text))(body)
        return [right[0], wrong[1], right[2], "Both. <verdict>A</verdict><verdict>B</verdict>"]

    with FaultyChatServer(answer=answer) as server:
        reward = judge_at(server, votes=4, temperature=1.0)
        logged: dict[str, float] = {}
        assert scores(reward, ["a", "bb"], log_metric=logged.__setitem__) == [[0.0, 1.0]]
        assert {body["n"] for body in server.bodies} == {4}
        assert logged["judge/unreadable"] == 0.25
        assert logged["judge/vote_agreement"] == pytest.approx(2 / 3)


def test_what_cannot_be_read_is_no_vote():
    def answer(body):
        first, second = responses_in(body)
        return ["A, I think"] if {first, second} == {"a", "bb"} else prefers(len)(body)

    with FaultyChatServer(answer=answer) as server:
        reward = judge_at(server)
        assert scores(reward, ["a", "bb", "ccc"], ["a", "bb"]) == [[0.0, 0.0, 1.0], [None, None]]
        assert reward.function.figures()["unreadable"] == 4 / 8


def test_the_judge_sees_prompt_and_images_as_the_policy_does():
    red, blue = (Image.new("RGB", (56, 28), colour) for colour in ("red", "blue"))
    own = [{"role": "user", "content": [{"type": "image", "image": blue}, {"type": "text", "text": "Whose?"}]}]
    with FaultyChatServer(answer=prefers(len)) as server:
        reward = judge_at(server)
        columns = {"prompts": ["Red?", "Red?", own, own], "images": [[red], [red], [blue], [blue]]}
        scores(reward, ["a", "bb"], ["c", "dd"], **columns)
        shown = [body["messages"][1]["content"] for body in server.bodies]
        assert {tuple(part["type"] for part in parts) for parts in shown} == {("text", "image_url", "text", "text")}
        seen = sorted((parts[2]["text"], picture_of(parts[1]).getpixel((0, 0))) for parts in shown)
        assert seen == [("Red?", (255, 0, 0))] * 2 + [("Whose?", (0, 0, 255))] * 2


def test_answers_are_kept_by_what_was_asked(tmp_path):
    with FaultyChatServer(answer=prefers(len)) as server:
        for _ in range(2):
            reward = judge_at(server, answer_cache=str(tmp_path / "judged"))
            assert scores(reward, ["a", "bb"]) == [[0.0, 1.0]]
        assert len(server.bodies) == 2
        assert reward.function.figures()["calls"] == 0


def test_a_local_judge_answers_each_question_once(tiny_model):
    reward = build_reward(
        {"name": "judge", "model": str(tiny_model), "max_new_tokens": 4, "batch_size": 3, "max_calls": 8}
    )
    red = Image.new("RGB", (28, 28), "red")
    assert scores(reward, ["a", "bb", "a"], images=[[red]] * 3) == [[0.5, None, 0.5]]  # no vote of it can be read
    assert scores(reward, ["a", "bb"], images=[[red]] * 2) == [[None] * 2]
    found = reward.function.figures()
    assert {name: found[name] for name in ("calls", "cached", "unreadable", "over_budget")} == {
        "calls": 2,
        "cached": 4,
        "unreadable": 1.0,
        "over_budget": 0,
    }
    scores(reward, ["c", "dd", "eee", "ffff"])
    assert reward.function.figures()["calls"] == 8
    assert reward.function.figures()["over_budget"] == 6


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_judge_that_never_answers_is_an_error_of_its_group():
    with FaultyChatServer(faults=lambda number, body: "HTTP 400" if "bb" in str(body) else None) as server:
        server.answer = prefers(len)
        reward = judge_at(server, on_error="skip")
        assert scores(reward, ["a", "bb"], ["c", "ddd"]) == [[None, None], [0.0, 1.0]]
        assert len(reward.failures) == 2
        assert "HTTP 400" in reward.failures[0].cause
        assert reward.function.figures()["failed"] == 2


SOME_FAIL = {
    "asked again": ({}, {"retries": 8, "failed": 0, "over_budget": 0}),
    "not asked again": ({"max_retries": 0}, {"retries": 0, "failed": 8, "over_budget": 0}),
    "calls are spent": ({"max_calls": 40, "concurrency": 1}, {"retries": 6, "failed": 0, "over_budget": 1}),
}


@pytest.mark.parametrize(("settings", "expected"), SOME_FAIL.values(), ids=SOME_FAIL)
def test_grpo_ends_with_a_judge_that_fails_a_fifth_of_the_calls(tiny_model, tmp_path, caplog, settings, expected):
    def faults(number: int, body: dict) -> str | None:
        return ("500", "429", "closed", "half json")[number // 5 % 4] if number % 5 == 4 else None

    rows = questions(8, images=picture)
    with FaultyChatServer(faults, prefers(lambda text: sum(map(ord, text)))) as server:
        reward = judge_at(server, **settings)
        trainer = make_trainer(str(tiny_model), tmp_path, reward, rows, max_steps=2, per_device_train_batch_size=2 * G)
        with caplog.at_level(logging.WARNING, "rewards.judging.groups"):
            trainer.train()
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    totals = {name: sum(entry[f"judge/{name}"] for entry in history) for name in ("calls", *expected)}
    assert len(history) == 2
    assert len(server.bodies) <= totals["calls"] <= settings.get("max_calls", 1000)  # some find a closed connection
    for name, least in expected.items():
        assert (totals[name] >= least) if least else (totals[name] == 0)
    assert len(re.findall("of max_calls are spent", caplog.text)) == (expected["over_budget"] > 0)
    assert history[0]["rewards/judge/mean"] == pytest.approx(0.5, abs=0.2 if totals["failed"] else 1e-6)


def test_eval_scores_the_completions_of_each_prompt_and_tells_the_cost(tmp_path):
    rows = [{"id": name[0], "question": "Longest?", "completion": name[1:]} for name in ("pa", "qccc", "pbb", "qd")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with FaultyChatServer(answer=prefers(len)) as server:
        (tmp_path / "judge.yaml").write_text(f"reward_funcs: [{{name: judge, model: '{server.address}'}}]")
        options = ["--dataset_name", tmp_path / "rows.jsonl", "--config", tmp_path / "judge.yaml"]
        main([*map(str, options), "--output_dir", str(tmp_path / "out")])
    found = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["judge"] for row in found] == [0.0, 1.0, 1.0, 0.0]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["figures"]["judge"]["calls"] == 4


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "both"}, "mode: expected pairwise or pointwise, found 'both'"),
        ({"votes": 0}, "votes: expected an integer, at least 1, found 0"),
        ({"votes": 3}, "temperature: expected above 0 for 3 votes, which would all be equal, found 0"),
        ({"max_calls": "many"}, "max_calls: expected an integer, at least 1, found 'many'"),
        ({"temperature": -1}, "temperature: expected at least 0, found -1"),
        ({"scale": [5, 1]}, r"scale: expected two integers, the worst and the best score, found \[5, 1\]"),
        ({"rubric": ""}, "rubric: expected a text, found ''"),
        ({"model": 3}, "model: expected a folder, Hub id or address, found 3"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_asked(settings, message):
    with pytest.raises(RewardSpecError, match=f"reward 'judge': {message}"):
        build_reward({"name": "judge", "model": "http://localhost:1/v1", **settings})


def test_settings_of_a_server_need_one(tiny_model):
    with pytest.raises(UserError, match="concurrency: is for a server"):
        build_reward({"name": "judge", "model": str(tiny_model), "concurrency": 2})


def test_a_server_that_is_not_there_is_found_before_training():
    with pytest.raises(UserError, match="expected a server that speaks OpenAI's API"):
        build_reward({"name": "judge", "model": "http://127.0.0.1:9/v1"}).function.check_there()
