"""The folder of a run among those of earlier runs of one recipe, where each has its own, named by its time."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from trainers.run.origin import changes, read_run


def own_folder(output_dir: str, resume: bool, record: Callable[[], Mapping[str, Any]]) -> str:
    """`output_dir` with a time stamp: that of an earlier run, or a new one; the same on every process.

    Args:
        resume: take the newest run that started from the same, finished or not, or else the newest unfinished one.
        record: gives what this run starts from (`trainers.run.origin`); asked on the main process.
    """
    chosen = None
    if PartialState().is_main_process:
        folder = Path(output_dir)
        earlier = {path: read_run(path) for path in sorted(folder.parent.glob(f"{folder.name}_[0-9]*"))}
        chosen = _earlier_folder(earlier, record()) if resume and earlier else None
        chosen = chosen or f"{folder}_{time.strftime('%Y%m%d-%H%M%S')}"
    return broadcast_object_list([chosen])[0]  # clocks of processes differ


def _earlier_folder(earlier: Mapping[Path, Mapping[str, Any] | None], record: Mapping[str, Any]) -> str | None:
    """The folder of the run to go on with, or to leave as it is."""
    same = [path for path, stored in earlier.items() if stored is not None and not changes(stored, record)]
    unfinished = [
        path
        for path, stored in earlier.items()
        if any(path.glob("checkpoint-*")) and (stored or {}).get("finished") is None
    ]
    found = same or unfinished
    return str(found[-1]) if found else None
