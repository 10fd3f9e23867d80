"""Spreading a run over devices: `--launch zero3` starts accelerate's launcher in a process group of its own.

This process only waits. It hands Ctrl-C and SIGTERM on to the launcher, which hands them on to the processes of the
run, and it ends with their status. Each of those is the same command once more; they end with the launcher, and the
launcher with this process, however that ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.cli.package_files import ACCELERATE_CONFIGS, shipped_file
from data.cli.processes import end_with_parent
from data.errors import UserError

STARTED_BY = "VLM_POSTTRAIN_STARTED_BY"
"""Variable: process id of who started the launcher, and the launcher's for the processes of a run."""
OPTIONS = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "mixed_precision")
"""Options of `accelerate launch` that go with `--launch`."""
LEAST = {"num_processes": 1, "num_machines": 1, "machine_rank": 0, "main_process_port": 0}
"""Those that are whole numbers, and what they are at least."""
PRECISIONS = ("no", "bf16", "fp16")
LAUNCHER = ("-m", "vlm_posttrain.accelerate_process")
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Launch:
    """How a run is to be spread.

    Attributes:
        config: file for accelerate.
        options: name -> value, of those above.
    """

    config: Path
    options: dict[str, str]


def split_launch(words: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """What a command line says on spreading the run, and everything else.

    Raises:
        UserError: no such configuration, or an option without `--launch` or without a value that it can have.
    """
    given, rest = {}, []
    left = iter(words)
    for word in left:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in ("launch", *OPTIONS):
            rest.append(word)
            continue
        given[name] = value if equals else next(left, "")
        if not given[name] or given[name].startswith("--"):
            raise UserError(f"command line: --{name}: expected a value, found none")
        _check_value(name, given[name])
    config = given.pop("launch", None)
    if config is None and given:
        raise UserError(f"command line: --{next(iter(given))} goes with --launch, which is not given")
    return None if config is None else Launch(shipped_file(config, ACCELERATE_CONFIGS), given), rest


def _check_value(name: str, value: str) -> None:
    """Raises a UserError for a value that accelerate would refuse with all its options, or take for none."""
    least = LEAST.get(name)
    if least is not None and not (value.isdecimal() and int(value) >= least):
        raise UserError(f"command line: --{name}: expected a whole number of at least {least}, found {value!r}")
    if name == "mixed_precision" and value not in PRECISIONS:
        raise UserError(f"command line: --{name}: expected one of {', '.join(PRECISIONS)}, found {value!r}")


def is_worker() -> bool:
    """Whether this is one of the processes that a run is spread over; from here on it ends with its launcher."""
    launcher = int(os.environ.get(STARTED_BY, "0"))
    if launcher and launcher == os.getppid():
        end_with_parent(launcher)
    return launcher != 0


def launch(how: Launch, words: Sequence[str]) -> int:
    """Starts the processes of a run and waits for them; their exit status.

    Args:
        words: the command line, which is also that of each of them.
    """
    options = [part for name, value in how.options.items() for part in (f"--{name}", value)]
    command = [sys.executable, *LAUNCHER, "--config_file", str(how.config), *options]
    command += ["--module", "vlm_posttrain", *words]
    environment = {**os.environ, STARTED_BY: str(os.getpid())}
    launcher = subprocess.Popen(command, env=environment, process_group=0)
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.killpg(launcher.pid, number))
    return shell_status(launcher.wait())


def shell_status(status: int) -> int:
    """The exit status of a process as a shell has it, where a signal's is negative in Python.

    >>> shell_status(-15), shell_status(1)
    (143, 1)
    """
    return 128 - status if status < 0 else status
