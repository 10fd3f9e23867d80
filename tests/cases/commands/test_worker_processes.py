"""T17: worker processes end with the command that started them, and never write on by themselves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT

from data.cli.processes import process_pool
from data.io.records import RecordError

PARENT = """
import multiprocessing, os, sys, time
from pathlib import Path
from data.cli.processes import process_pool

def tick(folder):
    for number in range(600):
        Path(folder, str(os.getpid())).write_text(str(number))
        time.sleep(0.05)

if __name__ == "__main__":
    method, folder = sys.argv[1:]
    with process_pool(2, mp_context=multiprocessing.get_context(method)) as pool:
        list(pool.map(tick, [folder] * 8))
"""


def _start(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def _wait(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _children(pid: int) -> list[int]:
    stats = [path.read_text(encoding="utf-8") for path in Path("/proc").glob("[0-9]*/stat") if path.is_file()]
    fields = [text.rpartition(")")[2].split() + [text.split()[0]] for text in stats]
    return [int(field[-1]) for field in fields if int(field[1]) == pid]


def _alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.is_file() and path.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def parent(tmp_path):
    """Function: start method -> a process with two workers at work, and the folder that they write to."""
    started = []

    def start(method: str) -> tuple[subprocess.Popen, Path]:
        script, folder = tmp_path / "parent.py", tmp_path / "ticks"
        script.write_text(PARENT, encoding="utf-8")
        folder.mkdir()
        started.append(_start([sys.executable, str(script), method, str(folder)]))
        assert _wait(lambda: len(list(folder.iterdir())) == 2), started[0].poll()
        return started[0], folder

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_t17_workers_end_with_their_parent(parent, method, ending):
    process, folder = parent(method)
    workers = [int(path.name) for path in folder.iterdir()]
    process.send_signal(ending)
    process.wait()
    assert _wait(lambda: not any(_alive(worker) for worker in workers), 5)
    ticks = [path.read_text(encoding="utf-8") for path in folder.iterdir()]
    time.sleep(0.2)
    assert [path.read_text(encoding="utf-8") for path in folder.iterdir()] == ticks


def test_t17_a_killed_command_leaves_no_worker(tmp_path):
    folder = tmp_path / "data"
    command = ["-m", "data.quality_reports", "--source", "easy_vqa", "--output_dir", str(folder), "--reports", "4000"]
    process = _start([sys.executable, *command, "--workers", "2", "--pool_size", "6"])
    try:
        assert _wait(lambda: len(_children(process.pid)) >= 2), process.poll()
        workers = _children(process.pid)
    finally:
        process.kill()
        process.wait()
    assert _wait(lambda: not any(_alive(worker) for worker in workers), 5)


def test_t17_a_worker_that_is_killed_is_an_error_and_not_a_traceback_of_the_library():
    with pytest.raises(RecordError, match="a worker process ended before its work was done"), process_pool(1) as pool:
        pool.submit(_die).result()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fill(pool, futures: list) -> None:
    futures.extend(pool.submit(time.sleep, 0.1) for _ in range(200))
    raise ZeroDivisionError


def test_t17_work_that_waits_is_dropped_after_an_error():
    started = time.monotonic()
    futures = []
    with pytest.raises(ZeroDivisionError), process_pool(1) as pool:
        _fill(pool, futures)
    assert time.monotonic() - started < 10
    assert sum(future.cancelled() for future in futures) > 100
