"""Runs that are killed and started again (killed_runs.py), each in a fork of one process, which imports once.

    python tests/helpers/kills/forked_resume_worker.py SETTINGS.json

Settings: runs, each with script (a module of trainers), argv, kill_at, kill_during_save and log (a file for what it
prints); statuses (JSON file to write: how each run ended, negative for a signal).
"""

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from transformers import TrainerCallback

from trainers.mixins.checkpoints import CompleteCheckpoints
from trainers.report import publishing

RECORDERS = {"rce": "groups.run", "offline_grpo": "groups.run"}
"""Script -> the module whose `train_and_record` it calls, where that is not its own."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            kill()


complete_save = CompleteCheckpoints._save_checkpoint


def half_a_checkpoint(trainer, kill_at: int) -> None:
    """Saves as usual, but for one step: there the process dies with only the weights written."""
    if trainer.state.global_step != kill_at:
        complete_save(trainer, trainer.model, None)
        return
    trainer.save_model(str(Path(trainer.args.output_dir) / f"checkpoint-{kill_at}"))
    kill()


def die_at(module, kill_at: int | None, during_save: bool) -> None:
    """Makes a run die at the end of a step, or while that step's checkpoint is written.

    Args:
        module: the one whose `train_and_record` the script calls.
    """
    original = module.train_and_record
    if kill_at is not None and during_save:
        CompleteCheckpoints._save_checkpoint = lambda self, model, trial: half_a_checkpoint(self, kill_at)
    elif kill_at is not None:

        def train_until_killed(trainer, *args):
            trainer.add_callback(Killer(kill_at))
            original(trainer, *args)

        module.train_and_record = train_until_killed


def _module(name: str):
    return importlib.import_module(f"trainers.{name}")


def run(settings: dict) -> int:
    """How the run ended."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    script = settings["script"]
    die_at(_module(RECORDERS.get(script, script)), settings["kill_at"], settings["kill_during_save"])
    try:
        _module(script).main(settings["argv"])
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    publishing.write_report = lambda *args: None  # at every step of every run, it would take minutes
    for script in {one["script"] for one in settings["runs"]}:
        _module(script)
    statuses = [run(one) for one in settings["runs"]]
    Path(settings["statuses"]).write_text(json.dumps(statuses), encoding="utf-8")


if __name__ == "__main__":
    main()
