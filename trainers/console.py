"""What a run prints: its own messages, and one short line a log, where Trainer prints every figure it has."""

import sys
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

# Logged key and how it is called; every reward's mean is shown besides. What is missing from a log is left out.
SHOWN = (
    ("reward", "reward"),
    ("eval_reward", "eval reward"),
    ("accuracy", "accuracy"),
    ("expected_reward", "expected reward"),
    ("eval_accuracy", "eval accuracy"),
    ("eval_expected_reward", "eval expected reward"),
    ("eval_f1_micro", "eval F1"),
    ("eval_map", "eval mAP"),
    ("score_gap", "gap"),
    ("saturation", "saturation"),
    ("eval_score_gap", "eval gap"),
    ("kl", "KL"),
    ("ratio", "ratio"),
    ("beta", "beta"),
    ("completions/mean_length", "length"),
    ("frac_reward_zero_std", "flat groups"),
    ("loss", "loss"),
    ("eval_loss", "eval loss"),
    ("mean_token_accuracy", "token accuracy"),
    ("eval_mean_token_accuracy", "eval token accuracy"),
    ("grad_norm", "gradient norm"),
    ("learning_rate", "lr"),
    ("train_runtime", "seconds"),
)


def say(message: str) -> None:
    """Prints on the main process."""
    if PartialState().is_main_process:
        sys.stdout.write(message + "\n")
        sys.stdout.flush()


def format_log(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    """The line for one log entry.

    >>> format_log(5, 65, {"reward": 1.25, "rewards/vqa_accuracy/mean": 0.625, "loss": -0.015, "epoch": 0.1})
    'step 5/65  reward 1.25  vqa_accuracy 0.625  loss -0.015'
    """
    parts = [f"step {step}/{max_steps}"]
    for key, name in SHOWN:
        if isinstance(logs.get(key), int | float):
            parts.append(f"{name} {logs[key]:.3g}")
        if key == "eval_reward":
            parts += [
                f"{logged.split('/')[1]} {value:.3g}"
                for logged, value in logs.items()
                if logged.startswith(("rewards/", "eval_rewards/")) and logged.endswith("/mean")
            ]
    return "  ".join(parts)


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
