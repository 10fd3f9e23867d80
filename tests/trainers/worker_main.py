"""What the programs have in common that tests start, alone or by torchrun, to train as settings say.

Settings, a JSON file: runs (name -> settings of the run), output (JSON file that the main process writes: what each
run gave), and what else the program needs.
"""

import faulthandler
import json
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from data.shards import end_processes


def fresh_states() -> None:
    """Lets a process train once more as if it had just begun."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def run_all(run: Callable[[dict, str], dict]) -> None:
    """Calls `run(settings, name)` for each run of the settings that the command line names."""
    faulthandler.dump_traceback_later(240, repeat=True)  # shows where a run that hangs waits
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = {}
    for name in settings["runs"]:
        fresh_states()
        results[name] = run(settings, name)
    if AcceleratorState().process_index == 0:
        Path(settings["output"]).write_text(json.dumps(results), encoding="utf-8")
    end_processes()
