"""Small data and models of the tests of cases."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, WORKERS

WORKER = WORKERS / "mains_worker.py"


@pytest.fixture(scope="session")
def often_ending_model(tiny_model, tmp_path_factory):
    """Folder (a text) of the tiny model that ends a completion with one of many tokens, so that lengths differ."""
    folder = tmp_path_factory.mktemp("ending") / "tiny"
    shutil.copytree(tiny_model, folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eos_token_id": [2, *range(40, 120)]}))
    return str(folder)


@pytest.fixture(scope="session")
def run_mains(run_warm):
    """Function: (folder, name -> module, argv and processes, folders to import from) -> name -> how its processes
    ended, and what they printed. The runs are made one after the other."""

    def run(folder: Path, runs: dict[str, dict], *import_from: Path) -> dict[str, tuple[list[int], str]]:
        logs = {name: folder / f"{name}.log" for name in runs}
        told = {name: {**one, "log": str(logs[name])} for name, one in runs.items()}
        settings, statuses = folder / "settings.json", folder / "statuses.json"
        settings.write_text(json.dumps({"runs": told, "statuses": str(statuses)}), encoding="utf-8")
        path = ":".join(map(str, (ROOT, *import_from)))
        done = run_warm(WORKER, settings, PYTHONPATH=path, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(statuses.read_text(encoding="utf-8"))
        return {name: (found[name], log.read_text(encoding="utf-8")) for name, log in logs.items()}

    return run


HOLDER = """
import sys, time
from contextlib import ExitStack
from data.cli.locks import locked
with ExitStack() as held:
    for output in sys.argv[1:]:
        held.enter_context(locked(output))
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def holder():
    """Function: outputs -> another process that holds their locks."""
    started = []

    def start(*outputs: Path) -> subprocess.Popen:
        arguments = [sys.executable, "-c", HOLDER, *map(str, outputs)]
        started.append(subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
