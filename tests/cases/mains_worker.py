"""Runs `main()` of scripts on several processes, each a fork of one process that imports once.

    python tests/cases/mains_worker.py SETTINGS.json

Settings: runs (name -> module, argv, processes, log) and statuses (JSON file to write: name -> how each process ended,
negative for a signal). A process that hangs is ended by SIGALRM.
"""

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

LONGEST = 150
"""Seconds that a process may take."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells each process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _be_process(run: dict, rank: int, port: int) -> None:
    """Runs `main()` as one process, and ends with its status."""
    signal.alarm(LONGEST)
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if run["processes"] > 1:
        os.environ |= _environment(rank, run["processes"], port)
    try:
        importlib.import_module(run["module"]).main(run["argv"])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_all(run: dict) -> list[int]:
    """How each process of a run ended."""
    port, children = _free_port(), []
    for rank in range(run["processes"]):
        child = os.fork()
        if not child:
            _be_process(run, rank, port)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for run in settings["runs"].values():
        importlib.import_module(run["module"])
    statuses = {name: run_all(run) for name, run in settings["runs"].items()}
    Path(settings["statuses"]).write_text(json.dumps(statuses), encoding="utf-8")


if __name__ == "__main__":
    main()
