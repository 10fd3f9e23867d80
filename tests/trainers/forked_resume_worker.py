"""Runs that are killed and started again (killed_runs.py), each in a fork of one process, which imports once.

    python tests/trainers/forked_resume_worker.py SETTINGS.json

Settings: runs, each with script (of `SCRIPTS`), argv, kill_at, kill_during_save and log (a file for what it
prints); statuses (JSON file to write: how each run ended, negative for a signal).
"""

import json
import os
import sys
import traceback
from pathlib import Path

from resume_worker import die_at

from trainers import factors, group_runs, offline_grpo, publishing, rce

SCRIPTS = {"rce": (rce, group_runs), "offline_grpo": (offline_grpo, group_runs), "factors": (factors, factors)}
"""The script, and the module whose `train_and_record` it calls."""


def run(settings: dict) -> int:
    """How the run ended."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    script, recorder = SCRIPTS[settings["script"]]
    die_at(recorder, settings["kill_at"], settings["kill_during_save"])
    try:
        script.main(settings["argv"])
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    publishing.write_report = lambda *args: None  # at every step of every run, it would take minutes
    statuses = [run(one) for one in settings["runs"]]
    Path(settings["statuses"]).write_text(json.dumps(statuses), encoding="utf-8")


if __name__ == "__main__":
    main()
