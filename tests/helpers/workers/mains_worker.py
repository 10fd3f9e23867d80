"""Runs `main()` of scripts on several processes, each a fork of one process that imports once.

    python tests/helpers/workers/mains_worker.py SETTINGS.json

Settings: runs (name -> module, argv, processes, log) and statuses (JSON file to write: name -> how each process ended,
negative for a signal).
"""

import importlib
import json
import sys
from pathlib import Path

from forked_ranks import run_forked


def run_all(run: dict) -> list[int]:
    """How each process of a run ended."""
    module = importlib.import_module(run["module"])
    return run_forked(lambda: module.main(run["argv"]), run["processes"], Path(run["log"]))


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for run in settings["runs"].values():
        importlib.import_module(run["module"])
    statuses = {name: run_all(run) for name, run in settings["runs"].items()}
    Path(settings["statuses"]).write_text(json.dumps(statuses), encoding="utf-8")


if __name__ == "__main__":
    main()
