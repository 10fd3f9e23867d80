"""The launcher's own process: accelerate's launcher, without its traceback where a process of the run has failed.

What was wrong, that process has said itself; unless a signal ended it, which is said here.
"""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from vlm_posttrain.import_path import put_current_folder_last

put_current_folder_last()

from data.cli.commands import command
from data.cli.interrupts import MESSAGE
from data.cli.processes import end_with_parent
from data.errors import UserError
from vlm_posttrain.launch import HANDED_ON, STARTED_BY, shell_status

QUIET = "torch.distributed.elastic"
"""Logger that tells of each signal and each failed process what the run itself has said."""


def _on_signal(number: int, _: FrameType | None) -> None:
    """A run on one process gets a signal itself, with its process group; before it has begun, this is the end."""
    import psutil

    if not psutil.Process().children():
        sys.stderr.write(f"{MESSAGE}\n")
        sys.stderr.flush()
        os._exit(128 + number)


def _check_devices(config: str, processes: int | None, machines: int | None) -> None:
    """Raises a UserError if a machine with GPUs has fewer than the processes that would start on it."""
    import torch
    import yaml

    planned = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    here = (processes or planned.get("num_processes", 1)) // (machines or planned.get("num_machines", 1))
    devices = torch.accelerator.device_count()
    if 0 < devices < here and not planned.get("use_cpu") and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise UserError(
            f"{config}: it starts {here} processes on this machine, which has {devices} devices; give --num_processes "
            f"{devices}, and keep the rows of a step by gradient_accumulation_steps"
        )


def _killed(rank: int, number: int) -> str:
    name = signal.Signals(number).name
    return f"error: the process of rank {rank} was ended by {name}; the system does so where memory is short\n"


@command
def main(argv: list[str] | None = None) -> None:
    """Launches as `accelerate launch` does, and ends with the status of the run."""
    for number in HANDED_ON:
        signal.signal(number, _on_signal)
    end_with_parent(int(os.environ[STARTED_BY]))
    os.environ[STARTED_BY] = str(os.getpid())

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger(QUIET).propagate = False
    logging.getLogger(QUIET).addHandler(logging.NullHandler())
    try:
        arguments = launch_command_parser().parse_args(argv)
        _check_devices(arguments.config_file, arguments.num_processes, arguments.num_machines)
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        rank, status = 0, error.returncode
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode
    except SignalException as error:
        rank, status = 0, 128 + error.sigval
    else:
        rank, status = 0, 0
    if status < 0:
        sys.stderr.write(_killed(rank, -status))
    sys.exit(shell_status(status))


if __name__ == "__main__":
    main()
