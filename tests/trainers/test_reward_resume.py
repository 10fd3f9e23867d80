"""kill -9 while a reward model is trained: the same command goes on in the same folder, bit for bit."""

import json
import signal
from pathlib import Path

import pytest
from preference_runs import write_preferences
from safetensors.torch import load_file

# 16 pairs, 4 a step: the run ends in its third epoch. Evaluations at every step count towards early stopping.
RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
output_dir: {output}
max_pixels: 1024
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
max_steps: 9
learning_rate: 1.0e-3
lm_loss_weight: 0.5
logging_steps: 2
eval_strategy: steps
eval_steps: 1
save_strategy: steps
save_steps: 1
save_total_limit: 2
early_stopping_patience: 9
report_to: none
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory, run_command):
    """Function: (name, step to be killed at) -> finished process, and the folders that it made."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_preferences(folder / "data")
    root = Path(__file__).parents[2]

    def start(name: str, kill_at: int | None = None, kill_during_save: bool = False):
        recipe, content = folder / f"{name}.yaml", folder / f"{name}.json"
        recipe.write_text(RECIPE.format(model=tiny_model, data=data, output=folder / name), encoding="utf-8")
        values = {"argv": ["--config", str(recipe)], "kill_at": kill_at}
        content.write_text(json.dumps({**values, "kill_during_save": kill_during_save}), encoding="utf-8")
        done = run_command(
            root / "tests" / "trainers" / "reward_resume_worker.py", content, timeout=600, PYTHONPATH=str(root)
        )
        return done, sorted(folder.glob(f"{name}_2*"))

    return start


@pytest.fixture(scope="module")
def uninterrupted(run):
    done, folders = run("uninterrupted")
    assert done.returncode == 0, done.stderr[-3000:]
    return folders[0]


def history(output: Path) -> list[dict]:
    """What was logged, without the clock, and without `loss`: Trainer's own mean leaves out what came before resuming.
    Its parts, `preference_loss` and `lm_loss`, do not."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    left_out = ("runtime", "per_second", "total_flos")
    return [
        {key: value for key, value in entry.items() if key != "loss" and not key.endswith(left_out)}
        for entry in state["log_history"]
    ]


# The last complete checkpoints are those of step 2 (between two logs: step 3's figures are half gathered), and of 6.
@pytest.mark.parametrize(("kill_at", "during_save"), [(4, False), (7, True)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(run, uninterrupted, kill_at, during_save):
    name = f"killed{kill_at}"
    killed, folders = run(name, kill_at, during_save)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert not (folders[0] / "model.safetensors").exists()
    resumed, after = run(name)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert after == folders
    assert f"resuming from {folders[0] / f'checkpoint-{kill_at - 1}'}" in resumed.stdout
    expected, found = (load_file(folder / "model.safetensors") for folder in (uninterrupted, folders[0]))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    assert history(folders[0])[:-1] == history(uninterrupted)[:-1]


def test_a_finished_run_is_not_written_over(run, uninterrupted):
    before = {path.name: path.stat().st_mtime_ns for path in uninterrupted.iterdir() if path.is_file()}
    done, folders = run("uninterrupted")
    assert done.returncode == 0
    assert f"already finished: the run in {uninterrupted} ended after step 9" in done.stdout
    assert folders == [uninterrupted]
    assert {path.name: path.stat().st_mtime_ns for path in uninterrupted.iterdir() if path.is_file()} == before
