"""What a run prints: its own messages, and one short line a log, where Trainer prints every figure it has."""

import sys
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trainers.report.logged_figures import CONSOLE, format_value, logged_values


def say(message: str) -> None:
    """Prints on the main process."""
    if PartialState().is_main_process:
        sys.stdout.write(message + "\n")
        sys.stdout.flush()


def warn(message: str) -> None:
    """Prints a warning on standard error, where no level of logging can hide it."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def format_log(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    """The line for one log entry. What was not logged is left out; what was logged without a number is shown as it is.

    >>> format_log(5, 65, {"reward": 1.25, "rewards/vqa_accuracy/mean": None, "loss": -0.015, "epoch": 0.1})
    'step 5/65  reward 1.25  vqa_accuracy none  loss -0.015'
    """
    shown = [f"{row.console_name(key)} {format_value(value)}" for row, key, value in logged_values(logs, CONSOLE)]
    return "  ".join([f"step {step}/{max_steps}", *shown])


class CompactProgress(ProgressCallback):
    """Trainer's progress bar, with short lines above it."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(format_log(state.global_step, state.max_steps, logs))


class CompactPrinter(TrainerCallback):
    """The same lines, where `disable_tqdm` leaves out the bar."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero:
            sys.stdout.write(format_log(state.global_step, state.max_steps, logs) + "\n")
            sys.stdout.flush()


def shorten_output(trainer: Trainer) -> None:
    """Puts the callbacks above in the places of Trainer's."""
    for theirs, ours in ((ProgressCallback, CompactProgress), (PrinterCallback, CompactPrinter)):
        if trainer.pop_callback(theirs) is not None:
            trainer.add_callback(ours)
