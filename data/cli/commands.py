"""How every program ends: what a user can mend, or does, is one message and an exit status, never a traceback."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from data.cli.locks import releasing_locks
from data.errors import UserError

GO_ON = "nothing half-written is left behind; run the same command again to go on"
GRACE_SECONDS = 3
"""How long the other processes of a launcher leave the main one to say what is wrong before they end."""
_MACHINE_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the largest size of a file is reached",
    errno.EROFS: "the file system can only be read",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EISDIR: "a folder is in the place of the file",
}
"""What the machine refuses, in words. Other errors of the system are mistakes of the program, and stay tracebacks."""
_SAFETENSORS_CODE = "os error "


class Terminated(BaseException):
    """SIGTERM, which a scheduler or `kill` sends."""


def _on_terminate(*_: object) -> None:
    raise Terminated


def machine_problem(error: BaseException | None) -> str | None:
    """What the machine refuses, or `None` for any other error. Libraries wrap such errors in their own.

    >>> machine_problem(OSError(errno.ENOSPC, "No space left on device", "a.json"))
    'a.json: the disk is full'
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            name = error.filename2 or error.filename
            return f"{name}: {_MACHINE_ERRORS[error.errno]}" if name else _MACHINE_ERRORS[error.errno]
        for code, words in _MACHINE_ERRORS.items():  # writers in Rust and C++ keep only the text
            if f"({_SAFETENSORS_CODE}{code})" in str(error) or os.strerror(code) in str(error):
                return f"{words} ({error})"
        error = error.__cause__ or error.__context__
    return None


def ending(error: BaseException, go_on: str = GO_ON) -> tuple[int, str] | None:
    """Exit status and message of an error, or `None` where a traceback is right.

    Args:
        go_on: what to do after an interruption.
    """
    if isinstance(error, UserError):
        return 1, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, f"interrupted (Ctrl-C): {go_on}"
    if isinstance(error, Terminated):
        return 128 + signal.SIGTERM, f"ended by SIGTERM: {go_on}"
    problem = machine_problem(error) if isinstance(error, Exception) else None
    return None if problem is None else (1, f"error: {problem}; when that is mended, run the same command again")


@contextmanager
def handling_terminate() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block, so that files are closed and removed as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, _on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _leave_quietly() -> None:
    """Whoever read the output (`| head`) has seen enough; the interpreter must not try to write the rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def check_alone() -> None:
    """Raises a UserError if a launcher has started several processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" in os.environ and processes > 1:
        raise UserError(
            f"this command does all its work in one process, and a launcher has started {processes} of them "
            "(WORLD_SIZE); start it with python"
        )


def leave_the_word() -> int:
    """Leaves the main process of a launcher the time to say what is wrong; the rank of this one.

    The launcher ends the others when the main one has ended, and then they say nothing. One that is left was alone in
    failing, and speaks.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank != 0:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(GRACE_SECONDS)
    return rank


def with_rank(message: str) -> str:
    """What to say on this process of a launcher, after leaving the main one the time to say the same."""
    rank = leave_the_word()
    return message if rank == 0 else f"on rank {rank}: {message}"


def command(main: Callable[..., None] | None = None, *, shares_work: bool = False) -> Callable[..., Any]:
    """Decorator of the `main` of a command.

    Args:
        shares_work: several processes of a launcher divide the work; other commands refuse to be started so, because
            all of them would write the same output.
    """
    if main is None:
        return partial(command, shares_work=shares_work)

    @wraps(main)
    def run(*args, **kwargs) -> None:
        try:
            with handling_terminate(), releasing_locks():
                if not shares_work:
                    check_alone()
                main(*args, **kwargs)
                sys.stdout.flush()
        except BrokenPipeError:
            _leave_quietly()
        except BaseException as error:
            found = ending(error)
            if found is None:
                raise
            status, message = found
            sys.stdout.flush()
            message = with_rank(message)
            if status == 1:
                sys.exit(message)
            sys.stderr.write(f"{message}\n")
            sys.exit(status)

    return run
