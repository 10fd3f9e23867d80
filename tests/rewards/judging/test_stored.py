"""Benches by a judge: what `rewards.reward_bench --judge` asks, counts and keeps."""

import json
from pathlib import Path

import pytest
from chat_server import FaultyChatServer, picture_of
from judges import prefers, responses_in
from PIL import Image

from models.served import attempts
from rewards.reward_bench import main


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.001)


@pytest.fixture
def bench(tmp_path) -> Path:
    """Four pairs, of which a judge of lengths has two right and one wrong, and cannot tell one."""
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    responses = [["a red one", "no"], ["no", "a red one"], ["red", "a blue one"], ["left", "west"]]
    ranks = [[0, 1], [1, 0], [0, 1], [0, 1]]
    rows = [
        {"id": f"mmmu_{place}", "query": f"What is it, {place}?", "image": "red.png", "response": texts}
        | {"human_ranking": ranks[place]}
        for place, texts in enumerate(responses)
    ]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(bench: Path, server: FaultyChatServer, *options: str) -> dict:
    """The summary of an evaluation."""
    output = bench.parent / "out"
    main(["--judge", server.address, "--dataset_name", str(bench), "--output_dir", str(output), *options])
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


def test_verdicts_in_both_orders_are_counted_by_the_rule_of_the_bench(bench, capsys):
    with FaultyChatServer(answer=prefers(len)) as server:
        summary = run(bench, server)
        assert len(server.bodies) == 2 * 4
        shown = [part for part in server.bodies[0]["messages"][1]["content"] if part["type"] == "image_url"]
        assert [picture_of(part).getpixel((0, 0)) for part in shown] == [(255, 0, 0)]
    assert (summary["overall"], summary["strict_overall"], summary["ties"]) == (2 / 3, 0.5, 1)
    assert summary["judge"]["order_agreement"] == 0.75
    assert "order_agreement 0.75" in capsys.readouterr().out


def test_a_diagnosis_of_a_judge_of_lengths(bench, capsys):
    """It is as right without the images, which all rows share; the order decides where both are as long."""
    with FaultyChatServer(answer=prefers(len)) as server:
        found = run(bench, server, "--diagnose", "4")["diagnosis"]
        assert len(server.bodies) == 3 * 2 * 4  # as they are, blank and without; there are no other pictures
    assert {name: one["share"] for name, one in found["images"].items()} == dict.fromkeys(
        ("with", "blank", "without"), (2 + 0.5) / 4
    )
    assert {name: (one["share"], one["rows"]) for name, one in found["order"].items()} == {"flips": (0.25, 4)}
    assert found["length"]["correlation"]["estimate"] == 1.0
    assert found["calibration"] is None
    assert "verdicts that flip with the order of responses" in capsys.readouterr().out


def test_unreadable_verdicts_are_ties(bench):
    def answer(body):
        return ["A it is."] if "no" in responses_in(body) else prefers(len)(body)

    with FaultyChatServer(answer=answer) as server:
        summary = run(bench, server)
    assert (summary["overall"], summary["ties"], summary["judge"]["unreadable"]) == (0.0, 3, 0.5)


def test_a_recipe_says_how_the_judge_is_asked(bench):
    recipe = bench.with_name("judge.yaml")
    recipe.write_text(
        "reward_funcs: [{name: judge, model: other, mode: pointwise, rubric: Be brief.}]", encoding="utf-8"
    )

    def answer(body):
        return [f"<score>{10 - len(responses_in(body)[0])}</score>"]

    with FaultyChatServer(answer=answer) as server:
        summary = run(bench, server, "--config", str(recipe))
        assert server.bodies[0]["messages"][0]["content"][0]["text"].startswith("Be brief.")
    assert (summary["overall"], summary["ties"]) == (pytest.approx(0.0), 2)


def test_what_was_judged_is_not_asked_again_after_a_failure(bench):
    broken = lambda number, body: "HTTP 400" if "blue" in str(body) else None  # noqa: E731
    with FaultyChatServer(broken, prefers(len)) as server:
        with pytest.raises(SystemExit):
            run(bench, server)
        before = len(server.answered)
        server.faults = lambda number, body: None
        run(bench, server)
        assert (before, len(server.answered)) == (6, 8)
    assert not list((bench.parent / "out").glob("*.parts"))
