"""kill -9 at any moment: the same command goes on, and ends with the weights of an uninterrupted run, bit for bit."""

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

# 24 reports, 2 a step: 12 optimizer steps an epoch would be slow, so the recipe reads 4 reports and one epoch is 4
# rollouts. A rollout serves two optimizer steps (steps_per_generation 2): odd steps lie in the middle of one.
RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
dataset_train_split: validation
max_pixels: 1024
agents: [blur_filter, exposure_filter, resolution_filter, exact_duplicate_filter, text_length_filter, answer_consistency_filter]
reward_funcs: [my_rewards.letters]
output_dir: {output}
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 4
steps_per_generation: 2
num_generations: 4
max_completion_length: 10
max_steps: 8
learning_rate: 1.0e-3
beta: 0.05
adaptive_kl: true
kl_target_min: 0.0
kl_target_max: 0.001
temperature: 1.2
temperature_schedule: linear
temperature_end: 0.8
dynamic_sampling_rounds: 1
save_steps: 1
save_total_limit: 2
logging_steps: 1
report_to: none
disable_tqdm: true
"""  # noqa: E501

REWARD = '''
def letters(completions, completion_ids, **columns):
    """Without contrast now and then, so that groups are drawn anew."""
    values = [sum(ids) / (400 * len(ids)) for ids in completion_ids]
    return [0.5] * len(values) if sum(map(sum, completion_ids)) % 3 == 0 else values
'''


@pytest.fixture(scope="module")
def run(tiny_model, report_data, tmp_path_factory, run_command):
    """Function: (name, step to be killed at) -> finished process and output folder."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    root = Path(__file__).parents[2]

    def start(name: str, kill_at: int | None = None, kill_during_save: bool = False):
        recipe, settings = folder / f"{name}.yaml", folder / f"{name}.json"
        output = folder / name
        recipe.write_text(RECIPE.format(model=tiny_model, data=report_data, output=output), encoding="utf-8")
        content = {"argv": ["--config", str(recipe)], "kill_at": kill_at, "kill_during_save": kill_during_save}
        settings.write_text(json.dumps(content), encoding="utf-8")
        done = run_command(root / "tests" / "trainers" / "resume_worker.py", settings, PYTHONPATH=f"{root}:{folder}")
        return done, output

    return start


@pytest.fixture(scope="module")
def uninterrupted(run):
    done, output = run("uninterrupted")
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def history(output: Path) -> list[dict]:
    """What was logged, without the clock."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    clock = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    return [{key: value for key, value in entry.items() if key not in clock} for entry in state["log_history"]]


# The last complete checkpoints are those of step 3 (in the middle of a rollout), of step 5 (likewise, in the second
# epoch) and of step 6 (between two rollouts).
@pytest.mark.parametrize(("kill_at", "during_save"), [(4, False), (6, True), (7, False)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(run, uninterrupted, kill_at, during_save):
    name = f"killed{kill_at}"
    killed, output = run(name, kill_at, during_save)
    assert killed.returncode == -signal.SIGKILL
    assert not (output / "model.safetensors").exists()
    resumed, _ = run(name)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"resuming from {output / f'checkpoint-{kill_at - 1}'}" in resumed.stdout
    expected, found = load_file(uninterrupted / "model.safetensors"), load_file(output / "model.safetensors")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    assert history(output)[:-1] == history(uninterrupted)[:-1]


def test_run_drew_groups_anew_and_moved_beta(uninterrupted):
    """Otherwise the test above would not show that these resume."""
    logged = history(uninterrupted)
    assert sum(entry.get("dynamic_sampling/groups_drawn", 0) for entry in logged) > 0
    assert len({entry["beta"] for entry in logged if "beta" in entry}) > 2
    assert logged[-2]["epoch"] > 1


def test_old_checkpoints_are_deleted_and_the_last_ones_complete(uninterrupted):
    folders = sorted(path.name for path in uninterrupted.glob("checkpoint-*"))
    assert folders == ["checkpoint-7", "checkpoint-8"]
    assert all((uninterrupted / name / "complete.json").is_file() for name in folders)
