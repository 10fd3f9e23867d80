"""Runs of the candidates command with a real VLM: killed, or divided among processes, they make the same file."""

import time
from pathlib import Path

import pytest
from places import KILLS

from rollouts import candidates

WORKER = KILLS / "rollout_kill_worker.py"


def command(folder: Path, model: Path, output: Path) -> list[str]:
    found = ["--dataset_name", folder, "--pools", folder / "pools-train.jsonl", "--model", model, "--output", output]
    found += ["--query_table", folder / "train.safetensors", "--example_table", folder / "train.safetensors"]
    found += ["--selector", folder / "first", "--num_beams", 3, "--num_retrieval", 2, "--num_random", 2]
    return [str(part) for part in (*found, "--shots", 1, 2, "--gt_prob", "--batch_size", 2, "--device", "cpu")]


@pytest.fixture(scope="module")
def undisturbed(selection_files, tiny_model, tmp_path_factory) -> tuple[Path, float]:
    """The file, and how long it took to make."""
    folder = tmp_path_factory.mktemp("undisturbed")
    candidates.main(command(selection_files, tiny_model, folder / "first.jsonl"))  # imports what is imported late
    start = time.monotonic()
    candidates.main(command(selection_files, tiny_model, folder / "out.jsonl"))
    return folder / "out.jsonl", time.monotonic() - start


def _kill(run_warm, kills: int, undisturbed, arguments: list[str], output: Path) -> None:
    """Kills runs at random moments; the file of the last equals the undisturbed one."""
    found = run_warm(WORKER, kills, 3, undisturbed[1], "rollouts.candidates", *arguments, timeout=500)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.rsplit("killed ", 1)[1]) >= kills // 2
    assert output.read_bytes() == undisturbed[0].read_bytes()


def test_killed_a_few_times_the_file_is_the_same(selection_files, tiny_model, tmp_path, undisturbed, run_warm):
    output = tmp_path / "out.jsonl"
    _kill(run_warm, 4, undisturbed, command(selection_files, tiny_model, output), output)


@pytest.mark.slow
def test_killed_twenty_times_the_file_is_the_same(selection_files, tiny_model, tmp_path, undisturbed, run_warm):
    output = tmp_path / "out.jsonl"
    _kill(run_warm, 20, undisturbed, command(selection_files, tiny_model, output), output)


def test_two_processes_make_the_same_file(selection_files, tiny_model, tmp_path, undisturbed, run_warm):
    output = tmp_path / "out.jsonl"
    arguments = command(selection_files, tiny_model, output)
    found = run_warm("-m", "rollouts.candidates", *arguments, processes=2)
    assert found.returncode == 0, found.stderr
    assert output.read_bytes() == undisturbed[0].read_bytes()
    shards = sorted((tmp_path / "out.jsonl.parts").glob("shard-*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in shards] == [6, 6]
