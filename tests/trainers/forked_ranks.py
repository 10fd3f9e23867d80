"""The processes of a run, each a fork of one process that has imported what they need."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

LONGEST = 300
"""Seconds that a process may take; SIGALRM ends one that hangs."""


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


def _be_process(work: Callable[[], object], log: Path) -> None:
    """Does the work and ends with its status; what is printed goes to the log."""
    signal.alarm(LONGEST)
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    try:
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_forked(work: Callable[[], object], processes: int, log: Path) -> list[int]:
    """Does the same work on so many processes at once, and gives how each ended, negative for a signal."""
    port, children = _free_port(), []
    for rank in range(processes):
        child = os.fork()
        if not child:
            if processes > 1:
                os.environ |= _environment(rank, processes, port)
            _be_process(work, log)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
