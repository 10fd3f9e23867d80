"""The processes of a run, each a fork of one process that has imported what they need."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

LONGEST = 300
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


def _be_process(work: Callable[[], object], log: Path, errors: Path, longest: int) -> None:
    """Does the work and ends with its status."""
    signal.alarm(longest)
    for number, path in ((1, log), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    status = 0
    try:
        work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_forked(
    work: Callable[[], object], processes: int, log: Path, errors: Path | None = None, longest: int = LONGEST
) -> list[int]:
    """Does the same work on so many processes at once.

    Args:
        log: file for what they print.
        errors: file for what they print as errors; the same by default.
        longest: seconds that they may take; SIGALRM ends one that hangs.

    Returns:
        How each ended, negative for a signal.
    """
    port, children = _free_port(), []
    for rank in range(processes):
        child = os.fork()
        if not child:
            if processes > 1:
                os.environ |= _environment(rank, processes, port)
            _be_process(work, log, errors or log, longest)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
