"""`--launch`: what goes to accelerate, and that signals and statuses pass through every process in between."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import ROOT
from short_runs import TRAINING, flags

from data.cli.package_files import ACCELERATE_CONFIGS
from data.errors import UserError
from vlm_posttrain import accelerate_process as launcher
from vlm_posttrain.launch import STARTED_BY, Launch, is_worker, split_launch


def test_what_is_for_the_launcher_is_told_apart():
    words = ["--config", "a", "--launch", "zero3", "--num_processes=4", "--beta", "0.1", "--machine-rank", "1"]
    how, rest = split_launch(words)
    assert how == Launch(ACCELERATE_CONFIGS / "zero3.yaml", {"num_processes": "4", "machine_rank": "1"})
    assert rest == ["--config", "a", "--beta", "0.1"]
    assert split_launch(rest) == (None, rest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launch"], "command line: --launch: expected a value, found none"),
        (["--launch", "--beta", "1"], "command line: --launch: expected a value, found none"),
        (["--num_processes", "2"], "command line: --num_processes goes with --launch, which is not given"),
        (
            ["--launch", "cpu", "--num_processes", "0"],
            "command line: --num_processes: expected a whole number of at le",
        ),
        (
            ["--launch", "cpu", "--machine_rank=x"],
            "command line: --machine_rank: expected a whole number of at least 0",
        ),
        (
            ["--launch", "cpu", "--mixed_precision", "int8"],
            "command line: --mixed_precision: expected one of no, bf16",
        ),
        (["--launch", "zero"], "zero: no such file, and none of accelerate_configs/ has this name; did you mean"),
    ],
)
def test_what_cannot_be_launched(words, message):
    with pytest.raises(UserError) as error:
        split_launch(words)
    assert str(error.value).startswith(message)


# -- processes --------------------------------------------------------------------------------------------------------

WORKER = """
import os, signal, sys, time
def end(number, _):
    print('worker', number, flush=True)
    sys.exit(40 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
from vlm_posttrain.launch import is_worker
assert is_worker()
print('ready', os.getpid(), os.getpgid(0), flush=True)
time.sleep(60)
"""
LAUNCHER = f"""
import os, signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
from data.cli.processes import end_with_parent
from vlm_posttrain.launch import STARTED_BY
end_with_parent(int(os.environ[STARTED_BY]))
os.environ[STARTED_BY] = str(os.getpid())
sys.exit(subprocess.run([sys.executable, '-c', {WORKER!r}]).returncode)
"""
OUTER = f"""
import sys
from pathlib import Path
from vlm_posttrain import launch as launching
launching.LAUNCHER = ('-c', {LAUNCHER!r})
sys.exit(launching.launch(launching.Launch(Path('x'), {{}}), ['grpo']))
"""


@pytest.fixture
def started():
    """The process that launches, the id of the worker that it has started by way of a launcher, and its group's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", OUTER], env=environment, stdout=subprocess.PIPE, text=True) as outer:
        _, worker, group = outer.stdout.readline().split()
        yield outer, int(worker), int(group)
        outer.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_workers_and_their_status_comes_back(started, number):
    outer, worker, group = started
    assert group not in (os.getpgid(outer.pid), os.getpgid(0))
    outer.send_signal(number)
    assert outer.wait(20) == 40 + number
    assert outer.stdout.read() == f"worker {int(number)}\n"  # once
    assert not psutil.pid_exists(worker)


def test_no_worker_outlives_the_command(started):
    outer, worker, _ = started
    process = psutil.Process(worker)
    outer.kill()
    for _ in range(100):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("the worker goes on")


def test_a_process_that_nobody_launched_is_no_worker(monkeypatch):
    monkeypatch.delenv(STARTED_BY, raising=False)
    assert not is_worker()


# -- the launcher -----------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(monkeypatch, capsys):
    """Function: what accelerate's launcher raises -> status and message of ours."""
    import accelerate.commands.launch

    monkeypatch.setattr(launcher, "end_with_parent", lambda parent: None)
    monkeypatch.setenv(STARTED_BY, str(os.getppid()))

    def run(error: BaseException | None, *words: str) -> tuple[int | str, str]:
        def launch_command(arguments) -> None:
            assert arguments.module
            assert arguments.training_script_args == ["grpo", "--config", "a"]
            if error is not None:
                raise error

        monkeypatch.setattr(accelerate.commands.launch, "launch_command", launch_command)
        handlers = [signal.getsignal(number) for number in launcher.HANDED_ON]
        words = words or ("--config_file", str(ACCELERATE_CONFIGS / "cpu.yaml"))
        with pytest.raises(SystemExit) as stop:
            launcher.main([*words, "--module", "vlm_posttrain", "grpo", "--config", "a"])
        for number, handler in zip(launcher.HANDED_ON, handlers, strict=True):
            signal.signal(number, handler)
        return stop.value.code, capsys.readouterr().err

    return run


def test_the_status_of_a_run_is_passed_on_without_a_word(launch):
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    killed = ChildFailedError("x", {1: ProcessFailure(1, 7, -9, "/nowhere"), 2: ProcessFailure(2, 8, 1, "/nowhere")})
    killed.failures[2].timestamp = killed.failures[1].timestamp + 1
    assert launch(None) == (0, "")
    assert launch(subprocess.CalledProcessError(3, ["x"])) == (3, "")
    assert launch(SignalException("x", signal.SIGTERM)) == (143, "")
    said = "error: the process of rank 1 was ended by SIGKILL; the system does so where memory is short\n"
    assert launch(killed) == (137, said)


def test_more_processes_than_devices_are_an_error(launch, monkeypatch):
    config = str(ACCELERATE_CONFIGS / "zero3.yaml")
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    expected = f"error: {config}: it starts 8 processes on this machine, which has 4 devices; give --num_processes 4"
    assert launch(None, "--config_file", config)[0].startswith(expected)
    assert launch(None, "--config_file", config, "--num_processes", "4") == (0, "")
    assert launch(
        None, "--config_file", str(Path(config).with_name("multi_node_zero3.yaml")), "--num_machines", "4"
    ) == (
        0,
        "",
    )


# -- accelerate's own launcher ----------------------------------------------------------------------------------------


@pytest.fixture
def on_two_processes(tiny_model, report_data, tmp_path):
    """Function: further options of a run on two processes, started in an empty folder -> its process."""

    def start(**more) -> subprocess.Popen:
        options = TRAINING | {"max_pixels": 1024, "gradient_checkpointing": False, "output_dir": "run"} | more
        words = flags(**{"model_name_or_path": tiny_model, "dataset_name": report_data} | options)
        command = [
            sys.executable,
            "-m",
            "vlm_posttrain",
            "sft",
            *words,
            "--launch",
            "multi_gpu",
            "--num_processes",
            "2",
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return start


@pytest.mark.slow
def test_a_run_on_two_processes(on_two_processes, tmp_path):
    with on_two_processes() as run:
        said, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors[-3000:]
    assert said.count("model saved to run") == 1
    assert "vlm-posttrain sft --model_name_or_path" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [{"max_prompt_length": 5}, {"dataset_name": "nowhere"}]
)  # seen by one process, by both
def test_a_run_that_fails_says_so_once(on_two_processes, wrong):
    with on_two_processes(**wrong) as run:
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 1
    assert errors.count("error: ") == 1, errors[-3000:]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_run_that_is_ended_leaves_no_process(on_two_processes):
    with on_two_processes(max_steps=400) as run:
        while "step 1/" not in (line := run.stdout.readline()):
            assert line, run.stderr.read()[-3000:]
        processes = psutil.Process(run.pid).children(recursive=True)
        assert len(processes) >= 3  # the launcher, and two that train
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 143
    assert "Traceback" not in errors
    assert not any(process.is_running() for process in processes)
