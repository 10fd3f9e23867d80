"""A GRPO run that test_resume.py kills and starts again.

    python tests/trainers/resume_worker.py SETTINGS.json

Settings: argv (of trainers/grpo.py), kill_at (optimizer step whose end kills the process, or null), kill_during_save.
"""

import json
import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from trainers import grpo
from trainers.checkpoints import CompleteCheckpoints


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            kill()


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    die_at(grpo, settings["kill_at"], settings["kill_during_save"])
    grpo.main(settings["argv"])


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


complete_save = CompleteCheckpoints._save_checkpoint


def half_a_checkpoint(trainer, kill_at: int) -> None:
    """Saves as usual, but for one step: there the process dies with only the weights written."""
    if trainer.state.global_step != kill_at:
        complete_save(trainer, trainer.model, None)
        return
    trainer.save_model(str(Path(trainer.args.output_dir) / f"checkpoint-{kill_at}"))
    kill()


if __name__ == "__main__":
    main()
