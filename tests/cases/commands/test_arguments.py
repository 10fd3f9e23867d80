"""Numbers on the command line: `--limit` means the same in every command, and impossible counts are clear errors."""

import argparse
import importlib
import json

import pytest
from PIL import Image

from data import vqa
from data.cli.arguments import add_limit_argument, at_least
from data.io.records import write_jsonl
from rewards import eval as rewards_eval
from rewards import validate

VQA = {"image": "0.png", "question": "what is it?", "answers": ["red"] * 10}


@pytest.fixture
def rows(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    write_jsonl(tmp_path / "vqa.jsonl", [{**VQA, "id": number} for number in range(6)])
    write_jsonl(tmp_path / "done.jsonl", [{"id": n, "completion": "red", "answers": ["red"] * 10} for n in range(6)])
    return tmp_path


LIMITS = [([], 6), (["--limit", "-1"], 6), (["--limit", "2"], 2), (["--limit", "100"], 6)]


@pytest.mark.parametrize(("limit", "count"), LIMITS)
def test_f10_limit_of_scoring(rows, limit, count):
    source = ["--input", str(rows / "done.jsonl"), "--rewards", "vqa_accuracy", "--output-dir", str(rows / "out")]
    rewards_eval.main([*source, *limit])
    assert len((rows / "out" / "scores.jsonl").read_text().splitlines()) == count


@pytest.mark.parametrize(("limit", "count"), LIMITS)
def test_f10_limit_of_validation(rows, limit, count, capsys):
    (rows / "recipe.yaml").write_text(f"dataset_name: {rows}/vqa.jsonl\nreward_funcs: [vqa_accuracy]\n")
    with pytest.raises(SystemExit) as status:
        validate.main(["--config", str(rows / "recipe.yaml"), "--splits", "train", *limit])
    assert status.value.code == 0
    assert f"train: {count} right answers" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "count"), LIMITS)
def test_f10_limit_of_official_records(rows, limit, count):
    questions = [{"question_id": n, "image_id": 0, "question": "what?"} for n in range(6)]
    answers = [{"question_id": n, "answers": [{"answer": "red"}]} for n in range(6)]
    (rows / "q.json").write_text(json.dumps({"questions": questions}))
    (rows / "a.json").write_text(json.dumps({"annotations": answers}))
    files = ["--questions", str(rows / "q.json"), "--annotations", str(rows / "a.json"), "--image-dir", str(rows)]
    vqa.main([*files, "--output-dir", str(rows / "out"), *limit])
    assert len((rows / "out" / "train.jsonl").read_text().splitlines()) == count


COMMANDS = {
    "data.vqa": ["--source", "easy_vqa", "--output-dir", "out"],
    "rewards.eval": ["--input", "in.jsonl", "--output-dir", "out"],
    "rewards.validate": ["--config", "r.yaml"],
    "rollouts.compare_factors": ["in", "--predictors", "a=b", "--routing", "r.yaml", "--output-dir", "out"],
    "rollouts.completions": ["--dataset", "in", "--model", "m", "--output", "out.jsonl"],
    "rollouts.candidates": ["--dataset", "in", "--pools", "p.jsonl", "--model", "m", "--output", "out.jsonl"],
    "rollouts.in_context": [
        "--dataset",
        "in",
        "--pool-size",
        "2",
        "--methods",
        "a",
        "--model",
        "m",
        "--output-dir",
        "o",
    ],
    "rollouts.beams": ["--dataset", "in", "--pools", "p.jsonl", "--model", "m", "--output", "out.jsonl"],
}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("0", "at least 1, found 0; -1 means all"),
        ("-2", "at least 1, found -2; -1 means all"),
        ("1.5", "a whole number, found '1.5'"),
        ("", "a whole number, found ''"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_f10_an_impossible_limit_is_a_clear_error_in_every_command(command, value, problem, capsys):
    with pytest.raises(SystemExit) as status:
        importlib.import_module(command).main([*COMMANDS[command], "--limit", value])
    assert status.value.code == 2
    assert "argument --limit: expected " in (shown := capsys.readouterr().err)
    assert problem in shown


COUNTS = [
    ("data.quality_reports", ["--source", "easy_vqa", "--output-dir", "out"], ["reports", "pool-size", "workers"]),
    ("data.dialects", ["--output-dir", "out"], ["train-examples", "train-queries", "dev", "test"]),
    ("data.preferences", ["--source", "easy_vqa", "--output-dir", "out"], ["pairs", "held-out-pairs", "answers"]),
    ("data.easy_factors", ["--kind", "damages", "--output-dir", "out"], ["images", "workers"]),
    ("data.factors", ["in.jsonl", "--output-dir", "out"], ["min-count"]),
    ("data.candidate_groups", ["in.jsonl"], ["shots"]),
    ("rewards.eval", COMMANDS["rewards.eval"], ["workers", "num-generations", "max-new-tokens", "batch-size"]),
    ("rewards.score", ["--model", "m", "--input", "in", "--output", "out.jsonl"], ["batch-size"]),
    ("rewards.reward_bench", ["--model", "m", "--data", "in", "--output-dir", "out"], ["batch-size"]),
    ("rollouts.compare_factors", COMMANDS["rollouts.compare_factors"], ["least-images", "batch-size"]),
    ("rollouts.completions", COMMANDS["rollouts.completions"], ["num-completions", "max-new-tokens", "batch-size"]),
    ("rollouts.candidates", COMMANDS["rollouts.candidates"], ["shots", "batch-size", "max-new-tokens", "max-pixels"]),
    ("rollouts.in_context", COMMANDS["rollouts.in_context"], ["pool-size", "shots", "generation-beams"]),
    ("rollouts.beams", COMMANDS["rollouts.beams"], ["beam-size", "shots", "chunk-size", "max-batch-tokens"]),
    ("rollouts.pools", ["in", "--sampler", "random", "--output", "out.jsonl"], ["pool-size", "num-queries"]),
    ("rollouts.filter_dataset", ["in", "--model", "m", "--output", "out.jsonl"], ["batch-size"]),
    ("rollouts.factor_reports", ["in", "--factors", "m", "--output-dir", "out"], ["batch-size"]),
    ("models.tiny", ["--output-dir", "out"], ["vocab-size", "hidden-size", "layers"]),
]


@pytest.mark.parametrize(
    ("command", "arguments", "option"),
    [(command, arguments, option) for command, arguments, options in COUNTS for option in options],
)
@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_f10_an_impossible_count_is_a_clear_error(command, arguments, option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        importlib.import_module(command).main([*arguments, f"--{option}", value])
    assert status.value.code == 2
    shown = capsys.readouterr().err.replace("_", "-")
    assert f"--{option}: expected" in shown or (value == "many" and f"--{option}: invalid int value" in shown)
    assert value in shown
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_f10_numbers_are_read_as_they_are():
    parser = argparse.ArgumentParser()
    add_limit_argument(parser)
    parser.add_argument("--shots", nargs="+", type=at_least(1))
    read = parser.parse_args(["--shots", "1", "2", "--limit", "3"])
    assert (read.shots, read.limit) == ([1, 2], 3)
    assert parser.parse_args([]).limit is parser.parse_args(["--limit=-1"]).limit is None


ROWS_WRITTEN = {
    "data.candidate_groups": "in",
    "rewards.score": "--model m --input in",
    "rollouts.beams": "--dataset in --pools p.jsonl --model m",
    "rollouts.candidates": "--dataset in --pools p.jsonl --model m",
    "rollouts.completions": "--dataset in --model m",
    "rollouts.factor_routing": "run in --model m --routing r.yaml",
    "rollouts.filter_dataset": "in --model m",
    "rollouts.pools": "in --sampler random",
}


@pytest.mark.parametrize("module", ROWS_WRITTEN)
@pytest.mark.parametrize("name", ["out", "out.json", "out.jsonl.parts"])
def test_f05_a_file_of_rows_that_nobody_could_read_is_refused_first(capsys, module, name):
    with pytest.raises(SystemExit) as found:
        importlib.import_module(module).main([*ROWS_WRITTEN[module].split(), "--output", name])
    assert found.value.code == 2
    assert f"--output: expected a name that ends in .jsonl, found '{name}'" in capsys.readouterr().err
