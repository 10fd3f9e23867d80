"""kill -9 while a reward model is trained: the same command goes on in the same folder, bit for bit."""

from pathlib import Path

import killed_runs
import pytest
from killed_runs import EVERY_STEP, check_equal_weights, check_resumed, kill_and_resume
from preference_runs import write_preferences

# 16 pairs, 4 a step: the run ends in its third epoch. Evaluations at every step count towards early stopping.
RECIPE = EVERY_STEP | {
    "dtype": "float32",
    "max_pixels": 1024,
    "own_folder": False,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 9,
    "learning_rate": 1e-3,
    "lm_loss_weight": 0.5,
    "logging_steps": 2,
}
# The last complete checkpoints are those of step 3 (between two logs: step 4's figures are half gathered), and of 6.
KILLS = {
    "uninterrupted": (None, False),
    "killed": (4, False),
    "resumed": (None, False),
    "killed_saving": (7, True),
    "resumed_saving": (None, False),
}


@pytest.fixture(scope="module")
def outcome(tiny_model, tmp_path_factory, run_warm):
    """How the runs ended; see killed_runs.py."""
    folder = tmp_path_factory.mktemp("reward_resume")
    data = {"model_name_or_path": str(tiny_model), "dataset_name": str(write_preferences(folder / "data"))}
    return kill_and_resume(folder, {"reward": ("reward", RECIPE | data)}, KILLS, run_warm)


def history(output: Path) -> list[dict]:
    """Without `loss`: Trainer's own mean leaves out what came before resuming. Its parts, `preference_loss` and
    `lm_loss`, do not."""
    return [{key: value for key, value in row.items() if key != "loss"} for row in killed_runs.history(output)]


@pytest.mark.parametrize(("suffix", "from_step"), [("", 3), ("_saving", 6)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(outcome, suffix, from_step):
    folders = check_resumed(outcome, "reward", suffix, from_step, history)
    check_equal_weights(*(folder / "model.safetensors" for folder in folders))
