"""Numbers on the command line: `--limit` means the same in every command, and impossible counts are clear errors."""

import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from command_lines import with_options
from PIL import Image

from data import vqa
from data.cli.arguments import UNNAMED, OptionError, device_option, option, parse_arguments
from data.cli.ranges import AT_LEAST_1, SHARE
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
    source = [
        "--dataset_name",
        str(rows / "done.jsonl"),
        "--rewards",
        "vqa_accuracy",
        "--output_dir",
        str(rows / "out"),
    ]
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
    files = ["--questions", str(rows / "q.json"), "--annotations", str(rows / "a.json"), "--image_dir", str(rows)]
    vqa.main([*files, "--output_dir", str(rows / "out"), *limit])
    assert len((rows / "out" / "train.jsonl").read_text().splitlines()) == count


COMMANDS = {
    "data.vqa": ["--source", "easy_vqa", "--output_dir", "out"],
    "rewards.eval": ["--dataset_name", "in.jsonl", "--output_dir", "out"],
    "rewards.validate": ["--config", "r.yaml"],
    "rollouts.compare_factors": [
        "--dataset_name",
        "in",
        "--predictors",
        "a=b",
        "--routing",
        "r.yaml",
        "--output_dir",
        "out",
    ],
    "rollouts.completions": ["--dataset_name", "in", "--model", "m", "--output", "out.jsonl"],
    "rollouts.candidates": ["--dataset_name", "in", "--pools", "p.jsonl", "--model", "m", "--output", "out.jsonl"],
    "rollouts.in_context": [
        "--dataset_name",
        "in",
        "--pool_size",
        "2",
        "--methods",
        "a",
        "--model",
        "m",
        "--output_dir",
        "o",
    ],
    "rollouts.beams": ["--dataset_name", "in", "--pools", "p.jsonl", "--model", "m", "--output", "out.jsonl"],
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
    ("data.quality_reports", ["--source", "easy_vqa", "--output_dir", "out"], ["reports", "pool_size", "workers"]),
    ("data.dialects", ["--output_dir", "out"], ["train_examples", "train_queries", "dev", "test"]),
    ("data.preferences", ["--source", "easy_vqa", "--output_dir", "out"], ["pairs", "held_out_pairs", "answers"]),
    ("data.easy_factors", ["--kind", "damages", "--output_dir", "out"], ["images", "workers"]),
    ("data.factors", ["--dataset_name", "in.jsonl", "--output_dir", "out"], ["min_count"]),
    ("data.candidate_groups", ["--dataset_name", "in.jsonl"], ["shots"]),
    ("rewards.eval", COMMANDS["rewards.eval"], ["workers", "num_generations", "max_new_tokens", "batch_size"]),
    ("rewards.score", ["--model", "m", "--dataset_name", "in", "--output", "out.jsonl"], ["batch_size"]),
    ("rewards.reward_bench", ["--model", "m", "--dataset_name", "in", "--output_dir", "out"], ["batch_size"]),
    ("rollouts.compare_factors", COMMANDS["rollouts.compare_factors"], ["least_images", "batch_size"]),
    ("rollouts.completions", COMMANDS["rollouts.completions"], ["num_completions", "max_new_tokens", "batch_size"]),
    ("rollouts.candidates", COMMANDS["rollouts.candidates"], ["shots", "batch_size", "max_new_tokens", "max_pixels"]),
    ("rollouts.in_context", COMMANDS["rollouts.in_context"], ["pool_size", "shots", "generation_beams"]),
    ("rollouts.beams", COMMANDS["rollouts.beams"], ["beam_size", "shots", "chunk_size", "max_batch_tokens"]),
    (
        "rollouts.pools",
        ["--dataset_name", "in", "--sampler", "random", "--output", "out.jsonl"],
        ["pool_size", "num_queries"],
    ),
    ("rollouts.filter_dataset", ["--dataset_name", "in", "--model", "m", "--output", "out.jsonl"], ["batch_size"]),
    ("rollouts.factor_reports", ["--dataset_name", "in", "--factors", "m", "--output_dir", "out"], ["batch_size"]),
    ("models.tiny", ["--output_dir", "out"], ["vocab_size", "hidden_size", "layers"]),
]


@pytest.mark.parametrize(
    ("command", "arguments", "option"),
    [(command, arguments, option) for command, arguments, options in COUNTS for option in options],
)
@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_f10_an_impossible_count_is_a_clear_error(command, arguments, option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        importlib.import_module(command).main(with_options(arguments, [f"--{option}", value]))
    assert status.value.code == 2
    shown = capsys.readouterr().err
    assert f"--{option}: expected" in shown
    assert value in shown
    assert not list(tmp_path.iterdir())  # nothing was begun


ROWS_WRITTEN = {
    "data.candidate_groups": "--dataset_name in",
    "rewards.score": "--model m --dataset_name in",
    "rollouts.beams": "--dataset_name in --pools p.jsonl --model m",
    "rollouts.candidates": "--dataset_name in --pools p.jsonl --model m",
    "rollouts.completions": "--dataset_name in --model m",
    "rollouts.factor_routing": "run --pool in --model m --routing r.yaml",
    "rollouts.filter_dataset": "--dataset_name in --model m",
    "rollouts.pools": "--dataset_name in --sampler random",
}


@pytest.mark.parametrize("module", ROWS_WRITTEN)
@pytest.mark.parametrize("name", ["out", "out.json", "out.jsonl.parts"])
def test_f05_a_file_of_rows_that_nobody_could_read_is_refused_first(capsys, module, name):
    with pytest.raises(SystemExit) as found:
        importlib.import_module(module).main([*ROWS_WRITTEN[module].split(), "--output", name])
    assert found.value.code == 2
    assert f"--output: expected a name that ends in .jsonl, found '{name}'" in capsys.readouterr().err


@dataclass(kw_only=True)
class _Arguments:
    """What a command might take."""

    dataset_name: str = option("rows", old=("input", UNNAMED))
    pool_size: int = option("candidates", 64, within=AT_LEAST_1)
    weights: tuple[float, ...] = option("of rewards", (1.0,))
    balance: tuple[float, float] | None = option("range", None, within=SHARE)
    order: Literal["left", "right"] = option("of examples", "left")
    output: Path | None = option("file", None)
    restart: bool = option("begin anew", False)

    def __post_init__(self):
        if self.restart and self.output is None:
            raise OptionError("--restart needs --output")


@dataclass(kw_only=True)
class _Named:
    """What one mostly says without its name."""

    name: str = option("of a recipe", positional=True)


def _read(*words: str) -> _Arguments:
    return parse_arguments(_Arguments, words)


def test_options_are_read_as_their_types():
    assert _read("--dataset_name", "x") == _Arguments(dataset_name="x")
    words = ["--dataset_name=x", "--pool-size", "3", "--weights", "1", "-2.5", "--balance", "0", "1"]
    given = _read(*words, "--order", "right", "--output", "a/b", "--restart")
    assert given == _Arguments(dataset_name="x", pool_size=3, weights=(1.0, -2.5), balance=(0.0, 1.0), order="right",
                               output=Path("a/b"), restart=True)  # fmt: skip
    assert not _read("--restart", "false", "--dataset_name", "x").restart
    assert _read("--dataset_name", "x", "--restart", "TRUE", "--output", "o").restart


@pytest.mark.parametrize("words", [("--input", "x"), ("--input=x",), ("x",), ("--pool-size", "64", "x")])
def test_what_the_last_version_called_it_is_read_with_a_line_on_stderr(words, capsys):
    assert _read(*words) == _Arguments(dataset_name="x")
    shown = capsys.readouterr().err
    assert shown.startswith("note: ")
    assert "--dataset_name" in shown
    assert shown.count("\n") == 1


def test_a_name_may_be_left_out_where_the_command_says_so(capsys):
    assert parse_arguments(_Named, ["x"]) == parse_arguments(_Named, ["--name", "x"]) == _Named(name="x")
    assert capsys.readouterr().err == ""


def test_the_other_processes_of_a_launcher_leave_that_line_out(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    _read("--input", "x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing: --dataset_name"),
        (["--dataset_name", "x", "y"], "expected --OPTION VALUE, found 'y'"),
        (["x", "y"], "expected --OPTION VALUE, found 'x y'"),
        (["--dataset-nme", "x"], "unknown option --dataset-nme; did you mean 'dataset_name'?"),
        (["--zzz", "x"], "unknown option --zzz\n"),
        (["x", "--pool_size"], "argument --pool_size: expected one argument"),
        (["x", "--pool_size", "1.5"], "argument --pool_size: expected a whole number, found '1.5'"),
        (["x", "--weights", "1", "nan"], "argument --weights: expected a finite number, found nan"),
        (["x", "--weights", "much"], "argument --weights: expected a number, found 'much'"),
        (["x", "--balance", "0"], "argument --balance: expected 2 arguments"),
        (["x", "--balance", "0", "2"], "argument --balance: expected a number from 0 to 1, found 2"),
        (["x", "--order", "lef"], "argument --order: invalid choice: 'lef'; did you mean 'left'? choose from 'left',"),
        (["x", "--restart=maybe"], "argument --restart: expected true or false, found 'maybe'"),
        (["x", "--restart"], "--restart needs --output"),
        (["x", "--output", ""], "argument --output: expected a path, found an empty one"),
        (["--dataset_name", "x", "--input", "x"], "--dataset_name: given as --dataset_name and as --input; give it"),
        (["x", "--pool-size", "1", "--pool_size=1"], "--pool_size: given as --pool-size and as --pool_size"),
        (["x", "--weights", "1", "--weights", "2"], "--weights: given twice; give it once, a list's values after"),
        (["x\udcff"], "'x\\udcff': not UTF-8 text at character 1"),
        (["x", "--output", "\ud800"], "'\\ud800': not UTF-8 text"),
    ],
)
def test_what_cannot_be_is_two_lines(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        _read(*words)
    assert stop.value.code == 2
    shown = re.sub("^note: .*\n", "", capsys.readouterr().err)
    assert message in shown
    assert shown.count("\n") == 2


@dataclass(kw_only=True)
class _OnDevice:
    """What a command with a model takes."""

    device: str | None = device_option()


@pytest.mark.parametrize("name", ["cudaa", "cuda:9", "gpu", "cpu:", ""])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(name, capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    assert parse_arguments(_OnDevice, ["--device", "cuda:1"]).device == "cuda:1"
    with pytest.raises(SystemExit):
        parse_arguments(_OnDevice, ["--device", name])
    expected = f"--device: expected one of this machine's devices, cpu, cuda, cuda:0, cuda:1, found {name!r}\n"
    assert expected in capsys.readouterr().err
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse_arguments(_OnDevice, ["--device", "cuda"])
    assert "devices, cpu, found 'cuda'" in capsys.readouterr().err
