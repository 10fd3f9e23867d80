"""Ctrl-C while a program is still being imported, which can take many seconds: one message, and no traceback.

Packages with programs import this first; from `main` on, `data.cli.commands` answers for its end.
"""

import os
import signal
import sys
from pathlib import Path
from types import TracebackType

MESSAGE = "interrupted (Ctrl-C): nothing was begun; run the same command again"


def is_own_program(started: str) -> bool:
    """Whether Python starts a program of this toolkit: a script, or a module, for which packages are imported first.

    Args:
        started: first word of the command line, which is `-m` until Python has found the module.
    """
    return started == "-m" or Path(started).resolve().parents[1:2] == Path(__file__).resolve().parents[2:3]


def end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends the process with a message if Ctrl-C is what nobody handled; anything else is a traceback as usual."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"{MESSAGE}\n")
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)


if sys.argv and is_own_program(sys.argv[0]):
    sys.excepthook = end_quietly
