"""One program at a time writes to an output: the next one that wants to is told who does.

A lock ends with its process, however that ends (`flock`), and only on systems where processes can hold one.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from data.cli.arguments import Arguments, parse_arguments
from data.cli.help import started_as
from data.cli.secrets import command_without_secrets
from data.io.records import RecordError

_OUTPUTS = ("output", "output_dir")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_SOON = 2.0
"""Seconds within which a process that has just locked a file says in it who it is."""
_programs: list[ExitStack] = []  # locks of the programs that run in this process, the innermost last
_held: set[Path] = set()  # a program may run another one on its own output


def lock_path(output: Path) -> Path:
    """Where the lock of a file or folder lies: beside it, or in it where nothing may be written beside it."""
    output = output.resolve()
    beside = next(place for place in output.parents if place.exists())
    folder = output if output.is_dir() and not os.access(beside, os.W_OK) else output.parent
    return folder / f".{output.name}.lock"


def describe_holder(path: Path) -> str:
    """Process, machine, time and command of who holds a lock."""
    until = time.monotonic() + _SOON
    while time.monotonic() < until:
        try:
            holder = json.loads(path.read_bytes())
            return (
                f"process {holder['process']} on {holder['host']} has been writing to it since {holder['since']} "
                f"({holder['command']})"
            )
        except FileNotFoundError:
            break
        except (OSError, ValueError, KeyError, TypeError):  # it has only just begun: both were started at once
            time.sleep(_SOON / 100)
    return "another process is writing to it"


def is_same_file(file: IO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def open_locked(path: Path, output: Path) -> IO:
    """The file, open and locked until it is closed or the process ends, however that ends.

    Raises:
        RecordError: another process holds it, or the file system has no locks.
    """
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            found = f"{output}: {describe_holder(path)}; wait for it, end it, or choose another output"
            raise RecordError([found]) from error
        except OSError as error:
            file.close()
            if error.errno not in _NO_LOCKS:
                raise
            found = f"{output}: its file system cannot lock files (flock: {error.strerror}); choose one that can"
            raise RecordError([found]) from error
        if is_same_file(file, path):
            return file
        file.close()  # its owner finished, and removed it, while we asked for the lock


def write_holder(file: IO) -> None:
    """Says in a locked file who holds it."""
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command_without_secrets([*started_as(), *sys.argv[1:]]),
    }
    file.truncate(0)
    file.write(json.dumps(holder).encode() + b"\n")
    file.flush()


@contextmanager
def locked(output: str | Path) -> Iterator[None]:
    """Keeps other programs from writing to a file or folder.

    Args:
        output: need not exist; folders above it are made, and removed if they are still empty in the end.

    Raises:
        RecordError: names the process that writes to it.
    """
    path = lock_path(Path(output))
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_locked(path, Path(output)) as file:
        try:
            write_holder(file)
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it by now
                for folder in made:
                    folder.rmdir()


@contextmanager
def releasing_locks() -> Iterator[None]:
    """A program: what it holds is released at its end."""
    with ExitStack() as held:
        _programs.append(held)
        try:
            yield
        finally:
            _programs.pop()


def hold(output: str | Path) -> None:
    """Locks an output until the program ends; of several processes that run it together, the main one does."""
    path = lock_path(Path(output))
    if _programs and os.environ.get("RANK", "0") == "0" and path not in _held:
        _held.add(path)
        _programs[-1].callback(_held.discard, path)
        _programs[-1].enter_context(locked(output))


def parse_and_hold(kind: type[Arguments] | Mapping[str, type[Arguments]], argv: Sequence[str] | None) -> Arguments:
    """What `parse_arguments` makes of a command line; what it says will be written is locked."""
    arguments = parse_arguments(kind, argv)
    if not getattr(arguments, "validate_only", False):
        for name in _OUTPUTS:
            output = getattr(arguments, name, None)
            if output is not None:
                hold(output)
    return arguments
