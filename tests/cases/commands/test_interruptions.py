"""T15: what the machine refuses and what a user interrupts is one message and an exit status, for every program."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from places import ROOT

from data.cli.commands import Terminated, command, ending, machine_problem
from data.errors import UserError
from data.io.records import write_json

PROGRAM = """
import os, signal, sys
from data.cli.commands import command

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background

@command
def main():
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    signal.pause()

main()
"""
WRITER = """
import resource, signal, sys
from data.cli.commands import command
from data.io.records import write_json

@command
def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    write_json(sys.argv[1], ["x" * 100_000])

main()
"""


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_t15_signals_end_with_one_message(name, status):
    done = _run(PROGRAM, name)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert "run the same command again" in done.stderr


def test_t15_a_file_that_may_not_grow_leaves_nothing_behind(tmp_path):
    done = _run(WRITER, str(tmp_path / "a.json"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: the largest size of a file is reached; when that is mended, run")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_t15_output_into_a_closed_pipe_is_quiet():
    program = (
        "from data.cli.commands import command\n@command\ndef main():\n  for n in range(100000): print(n)\nmain()"
    )
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{program}' | head -1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system can only be read"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "the disk quota is used up"),
    ],
)
def test_t15_what_the_machine_refuses_is_said_in_words(code, words):
    error = OSError(code, os.strerror(code), "a.json")
    assert machine_problem(error) == f"a.json: {words}"
    wrapped = RuntimeError("of a library")
    wrapped.__cause__ = error
    assert machine_problem(wrapped) == f"a.json: {words}"
    assert words in machine_problem(RuntimeError(f"I/O error: {os.strerror(code)} (os error {code})"))
    assert ending(error)[0] == 1


def test_t15_mistakes_of_the_program_stay_tracebacks():
    assert ending(KeyError("x")) is None
    assert ending(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_t15_a_trainer_says_how_to_go_on(capsys):
    from trainers.run.script import readable_errors

    for error, status in ((KeyboardInterrupt(), 130), (Terminated(), 143), (UserError("x"), 1)):
        with pytest.raises(SystemExit) as found, readable_errors():
            raise error
        assert found.value.code == status
        shown = capsys.readouterr().err
        assert ("it resumes from the newest complete checkpoint" in shown) == (status != 1)


def test_t15_a_full_disk_ends_a_command(tmp_path):
    @command
    def main():
        with open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(SystemExit) as found:
        main()
    assert found.value.code.startswith("error: the disk is full")


def test_t15_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.json").mkdir()

    @command
    def main():
        write_json(tmp_path / "a.json", [])

    with pytest.raises(SystemExit, match="a folder is in the place of the file"):
        main()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_t15_the_earlier_handler_is_back():
    before = signal.getsignal(signal.SIGTERM)
    command(lambda: None)()
    assert signal.getsignal(signal.SIGTERM) is before


SLOW_IMPORT = """
import os, signal, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("-m data.vqa", "pydantic"),
        ("-m models.tiny", "pydantic"),
        ("-m rewards.score", "pydantic"),
        ("-m rollouts.beams", "numpy"),
        ("-m trainers.report", "pydantic"),
        ("trainers/sft.py", "yaml"),
        ("trainers/sft.py", "torch"),
        ("trainers/grpo.py", "torch"),
    ],
)
def test_t15_ctrl_c_during_imports_is_one_message(tmp_path, program, module):
    (tmp_path / f"{module}.py").write_text(SLOW_IMPORT, encoding="utf-8")
    options = ["--output_dir", "x", "--use_cpu", "true", "--bf16", "false", "--dataset_name", "x"]
    options += ["--model_name_or_path", "x", "--reward_funcs", "xml_format"] if "grpo" in program else []
    done = subprocess.run(
        [sys.executable, *program.split(), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "interrupted (Ctrl-C): nothing was begun; run the same command again\n"
    assert done.returncode == 130


def test_t15_programs_of_others_keep_their_own_way():
    for program in ("import rollouts, trainers", "import sys; sys.argv = []; import data"):
        done = _run(f"{program}\nraise KeyboardInterrupt")
        assert "Traceback" in done.stderr
    assert (
        _run("import data.cli.interrupts as i; i.end_quietly(KeyError, KeyError('x'), None)").stderr
        == "KeyError: 'x'\n"
    )


# -- processes of a launcher ------------------------------------------------------------------------------------------

OF_RANK_1 = """
import sys
import time
from data.cli.commands import command
from data.errors import UserError

@command(shares_work=True)
def main():
    print("failing", flush=True)
    raise UserError("what rank 0 says")

main()
"""


def test_t15_a_process_that_the_launcher_ends_leaves_the_word_to_the_main_one():
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", OF_RANK_1], cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout.readline() == "failing\n"
        time.sleep(0.5)  # it waits to be ended
        process.terminate()
        assert process.wait(2) == -signal.SIGTERM
        assert process.stderr.read() == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_t15_other_errors_leave_the_word_too(rank, monkeypatch):
    """A collective fails on all processes when one of them has ended with a message."""
    from trainers.run.script import readable_errors

    waited = []
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(RuntimeError, match="Connection closed by peer"), readable_errors():
        raise RuntimeError("Connection closed by peer")
    assert len(waited) == rank
