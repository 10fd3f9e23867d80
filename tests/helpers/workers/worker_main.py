"""What the programs have in common that distributed_runs.py starts, to train as settings say on one process or more.

Settings, JSON files: processes, log (a file for what they print), runs (name -> settings of the run), output (JSON
file to write: what each run gave the main process; only if every process ended well), and what else the program needs.
"""

import faulthandler
import json
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from forked_ranks import run_forked

from data.io.shards import end_processes


def fresh_states() -> None:
    """Lets a process train once more as if it had just begun."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def _without_compiling() -> None:
    """DeepSpeed would compile its sums through shared memory for a minute; those of gloo are the same."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False


def _be_rank(run: Callable[[dict, str], dict], settings: dict, part: Path) -> None:
    faulthandler.dump_traceback_later(240, repeat=True)  # shows where a run that hangs waits
    results = {}
    for name in settings["runs"]:
        fresh_states()
        results[name] = run(settings, name)
    if AcceleratorState().process_index == 0:
        part.write_text(json.dumps(results), encoding="utf-8")
    end_processes()


def run_all(run: Callable[[dict, str], dict]) -> None:
    """Calls `run(settings, name)` for each run of the settings that the command line names, file by file."""
    texts = [Path(path).read_text(encoding="utf-8") for path in sys.argv[1:]]
    if any('"zero_optimization"' in text for text in texts):
        _without_compiling()
    for settings in map(json.loads, texts):
        output = Path(settings["output"])
        part = output.with_suffix(".part")
        statuses = run_forked(
            lambda settings=settings, part=part: _be_rank(run, settings, part),
            settings["processes"],
            Path(settings["log"]),
        )
        if not any(statuses):
            part.rename(output)
