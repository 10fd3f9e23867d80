"""Worker processes that end when their parent does, however it ends."""

import ctypes
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from data.io.records import RecordError

_PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`: the signal that the kernel sends to this process when its parent ends."""


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, also by `kill -9`.

    Without it, a worker would go on writing into a folder that the next run of the same command works on.

    Args:
        parent: the parent's process id; if it has ended already, so does this process.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _start_worker(parent: int) -> None:
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process: the parent says what it means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def process_pool(workers: int, **options: Any) -> Iterator[ProcessPoolExecutor]:
    """A `ProcessPoolExecutor` whose workers end with this process, and which drops waiting work after an error.

    Args:
        workers: how many processes.
        options: of the executor.

    Raises:
        RecordError: a worker ended before its work was done.
    """
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),), **options)
    try:
        yield pool
    except BrokenProcessPool as error:
        hint = "killed, or out of memory; run the command again, with fewer --workers if memory is short"
        raise RecordError([f"a worker process ended before its work was done ({hint})"]) from error
    finally:
        pool.shutdown(cancel_futures=True)
