"""T12: one program at a time writes to an output, and the next one is told who does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.commands import command
from data.locks import hold, lock_path, locked
from data.records import RecordError

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from data.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Function: output -> another process that holds its lock."""
    started = []

    def start(output: Path) -> subprocess.Popen:
        arguments = [sys.executable, "-c", HOLDER, str(output)]
        started.append(subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["run", "rows.jsonl", "a/b/run"])
def test_t12_the_second_is_told_who_holds_it(tmp_path, holder, name):
    output = tmp_path / name
    process = holder(output)
    with pytest.raises(RecordError) as found, locked(output):
        pass
    host = os.uname().nodename
    assert f"{output}: process {process.pid} on {host} has been writing to it since 20" in str(found.value)
    assert "(python -c" in str(found.value)


def test_t12_a_lock_ends_with_its_process_at_kill_9(tmp_path, holder):
    process = holder(tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(tmp_path / "run"):
        assert lock_path(tmp_path / "run").is_file()
    assert not lock_path(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("models.tiny", ["--output-dir", "{}"]),
        ("data.vqa", ["--source", "easy_vqa", "--limit", "4", "--output-dir", "{}"]),
        ("rewards.eval", ["--input", "x", "--rewards", "xml_format", "--output-dir", "{}"]),
        ("rewards.score", ["--model", "x", "--input", "x", "--output", "{}"]),
        ("rewards.reward_bench", ["--model", "x", "--data", "x", "--output-dir", "{}"]),
        ("rollouts.completions", ["--dataset", "x", "--model", "x", "--output", "{}"]),
        ("rollouts.filter_dataset", ["x", "--model", "x", "--output", "{}"]),
    ],
)
def test_t12_commands_hold_what_they_write(tmp_path, holder, module, arguments, capsys):
    import importlib

    output = tmp_path / "out.jsonl"
    process = holder(output)
    with pytest.raises(SystemExit) as found:
        importlib.import_module(module).main([part.format(output) for part in arguments])
    assert f"error: {output}: process {process.pid} on" in str(found.value.code)
    assert not output.exists()


def test_t12_a_program_releases_its_lock_and_leaves_no_empty_folder(tmp_path):
    @command
    def main():
        hold(tmp_path / "a" / "run")
        hold(tmp_path / "a" / "run")  # a program may run another one on its own output
        assert lock_path(tmp_path / "a" / "run").is_file()

    main()
    main()
    assert not (tmp_path / "a").exists()


def test_t12_a_trainer_holds_its_folder(tmp_path, holder, capsys):
    from types import SimpleNamespace

    from trainers.resuming import begin_run
    from trainers.runs import readable_errors

    process = holder(tmp_path / "run")
    args = SimpleNamespace(output_dir=str(tmp_path / "run"))
    with pytest.raises(SystemExit) as found, readable_errors():
        begin_run("GRPO", None, args, None, {})
    assert found.value.code == 1
    assert f"process {process.pid} on" in capsys.readouterr().err


def test_t12_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    import errno
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RecordError, match="its file system cannot lock files"), locked(tmp_path / "run"):
        pass


def test_t12_other_ranks_leave_the_lock_to_the_main_one(tmp_path, holder, monkeypatch):
    holder(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")

    @command
    def main():
        hold(tmp_path / "run")

    main()
