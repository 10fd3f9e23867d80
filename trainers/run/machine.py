"""What a run was started by, and what it ran on."""

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.cli.help import NAME
from data.cli.secrets import command_without_secrets

PACKAGES = ("vlm-posttrain", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")
MISSING = "not installed"
"""Stands in place of a version."""
CPU_INFO = Path("/proc/cpuinfo")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of packages, by default of those that decide what a run does."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = MISSING
    return found


# -- the command ------------------------------------------------------------------------------------------------------


def command_line() -> str:
    """The command that this process was started by: that of the launcher, where there is one."""
    import psutil

    ancestors = [sys.orig_argv]
    try:
        for process in psutil.Process().parents():
            ancestors.append(process.cmdline())
    except psutil.Error:  # a process of another user, or one that has ended
        pass
    return launched_command(ancestors)


def launched_command(ancestors: list[list[str]]) -> str:
    """The command furthest up that is a Python program started with the same script or module, without secrets.

    The one command is given to the processes of a run as it was typed.

    Args:
        ancestors: arguments of the process itself, of its parent, and so on.

    >>> launched_command([["/v/bin/python", "-u", "trainers/x.py", "--lr", "1"],
    ...                   ["/v/bin/python3.11", "/v/bin/accelerate", "launch", "trainers/x.py", "--lr", "1"],
    ...                   ["bash", "run.sh"]])
    'accelerate launch trainers/x.py --lr 1'
    """
    own = ancestors[0]
    tail = _without_interpreter(own)
    if Path(*tail[:1]).name.replace("_", "-") == NAME:  # which starts its own launcher
        return command_without_secrets([NAME, *tail[1:]])
    command = own
    for arguments in ancestors[1:]:
        if not (arguments and _is_python(arguments[0])) or arguments[-len(tail) :] != tail:
            break
        command = arguments
    return command_without_secrets(_as_typed(command))


def _is_python(program: str) -> bool:
    return Path(program).name.startswith("python")


def _without_interpreter(arguments: list[str]) -> list[str]:
    """Script and its arguments: what a launcher hands on unchanged."""
    place = next((place for place, one in enumerate(arguments[1:], 1) if not one.startswith("-")), len(arguments))
    return arguments[place:]


def _as_typed(arguments: list[str]) -> list[str]:
    """A program of the environment's `bin` by its name, without the interpreter and folder in front."""
    program, *rest = arguments
    if rest and Path(rest[0]).parent == Path(program).parent:
        return [Path(rest[0]).name, *rest[1:]]
    return [Path(program).name if _is_python(program) else program, *rest]


# -- the hardware -----------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """As the operating system calls it."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_names(device: Any, processes: int) -> str:
    """What the weights are on: "NVIDIA H200 x 4", or the CPU; one a process.

    Args:
        device: `torch.device` of this process.
    """
    import torch

    if device.type == "cpu":
        shared = f", {processes} processes" if processes > 1 else ""
        return f"CPU: {cpu_name()}, {usable_cores()} cores{shared}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} x {processes}"


def peak_memory(device: Any) -> dict[str, float]:
    """Most memory that this process has had, in GB: of the machine, and of its accelerator if it has one."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peak["accelerator memory"] = torch.cuda.max_memory_allocated(device) / 1e9
    return peak
