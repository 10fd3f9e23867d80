"""T20: every `main()` that may run on several processes runs on two of them to its end, with exit status 0."""

import importlib
import json
from pathlib import Path

import pytest
from preference_runs import write_preferences
from short_runs import NAMES, TRAINING, flags, trainers

from data.cli import commands


def _commands(folder: Path, tiny_model: Path, reward_model: Path, report_data: Path) -> dict[str, tuple[str, list]]:
    """Name -> (module, arguments) of commands that share their work among processes."""
    pairs = write_preferences(folder / "pairs")
    rows = folder / "rows.jsonl"
    row = {"query": "what color?", "image": "pairs/red.png", "response": ["red", "blue"]}
    rows.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number in range(3)), encoding="utf-8")
    scores = ["--model", reward_model]
    return {
        "score": ("rewards.score", ["--dataset_name", rows, "--output", folder / "scores.jsonl", *scores]),
        "reward_bench": (
            "rewards.reward_bench",
            ["--dataset_name", pairs, "--split", "train", "--output_dir", folder / "bench", "--diagnose", 8, *scores],
        ),
        "completions": (
            "rollouts.completions",
            [
                "--dataset_name",
                report_data,
                "--model",
                tiny_model,
                "--output",
                folder / "completions.jsonl",
                "--limit",
                4,
            ]
            + ["--rewards", "xml_format", "--num_completions", 2, "--max_new_tokens", 4],
        ),
    }


COMMANDS = ("score", "reward_bench", "completions")


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny_model, tiny_reward_model, report_data, run_mains):
    """Name -> how its two processes ended, and what they printed."""
    folder = tmp_path_factory.mktemp("two_processes")
    runs = {
        name: {"module": module, "argv": flags(**TRAINING, **options, output_dir=folder / name), "processes": 2}
        for name, (module, options) in trainers(folder, tiny_model, report_data).items()
    }
    for name, (module, argv) in _commands(folder, tiny_model, tiny_reward_model, report_data).items():
        runs[name] = {"module": module, "argv": [str(part) for part in argv], "processes": 2}
    return run_mains(folder, runs)


@pytest.mark.parametrize("name", NAMES + COMMANDS)
def test_t20_every_main_ends_well_on_two_processes(ended, name):
    statuses, log = ended[name]
    assert statuses == [0, 0], log[-3000:]
    assert "Traceback" not in log
    assert name in COMMANDS or log.count("model saved to") == 1


ALONE = {
    "rollouts.embeddings": ["records.jsonl", "--output"],
    "rollouts.pools": ["records.jsonl", "--sampler", "random", "--output"],
    "rewards.eval": ["--dataset_name", "answers.jsonl", "--rewards", "xml_format", "--output_dir"],
    "data.vqa": ["source.json", "--output_dir"],
    "models.tiny": ["--output_dir"],
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("module", ALONE)
def test_t20_commands_that_cannot_share_their_work_refuse_a_launcher(module, rank, tmp_path, monkeypatch):
    """Else all processes would write one output."""
    monkeypatch.setattr(commands, "GRACE_SECONDS", 0)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*ALONE[module], str(tmp_path / "output")])
    message = (
        "error: this command does all its work in one process, and a launcher has started 2 of them (WORLD_SIZE); "
        "start it with python"
    )
    assert ended.value.code == (f"on rank 1: {message}" if rank else message)
    assert list(tmp_path.iterdir()) == []


def test_t20_a_launcher_of_one_process_is_no_problem(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    commands.check_alone()
