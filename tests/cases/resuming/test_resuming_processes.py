"""T22: GRPO that was killed in the middle of a rollout goes on with another number of processes, or says that it will
not, on all of them alike."""

import re

import pytest

REWARD = '''
import os
import signal

steps = []


def told(completions, completion_ids, trainer_state, **columns):
    """Prints the optimizer step of each rollout, the process, and how many completions it has. A process that has made
    the first rollout is killed in the second one."""
    steps.append(trainer_state.global_step)
    if steps == [0, 4]:
        os.kill(os.getpid(), signal.SIGKILL)
    print("rolled out", trainer_state.global_step, os.environ.get("RANK", "0"), len(completions), flush=True)
    return [sum(ids) / (400 * len(ids)) for ids in completion_ids]
'''
RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
max_pixels: 1024
reward_funcs: [told_rewards.told]
use_cpu: true
bf16: false
gradient_checkpointing: false
steps_per_generation: 4
num_generations: 4
max_completion_length: 4
save_steps: 3
max_steps: 5
report_to: none
disable_tqdm: true
"""
DIRECTIONS = {"1 to 2": ((1, 4), (2, 4)), "2 to 1": ((2, 2), (1, 4))}
"""Processes, and rows of each in a step: before and after."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny_model, report_data, run_mains):
    """Name -> how the processes of a run ended, and what they printed."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "told_rewards.py").write_text(REWARD, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny_model, data=report_data), encoding="utf-8")

    def run(output: str, processes: int, rows: int, resume: str = "true") -> dict:
        argv = ["--config", recipe, "--output_dir", folder / output, "--per_device_train_batch_size", rows]
        argv += ["--resume", resume]
        return {"module": "trainers.grpo", "argv": [str(part) for part in argv], "processes": processes}

    runs = {}
    for name, (before, after) in DIRECTIONS.items():
        runs[f"{name}, killed"] = run(name, *before)
        runs[f"{name}, default"] = run(name, *after)
        runs[f"{name}, changed"] = run(name, *after, resume="changed")
    return run_mains(folder, runs, folder)


def _rollouts(log: str) -> list[tuple[int, int]]:
    """(optimizer step, completions of all processes) of each rollout."""
    found: dict[int, int] = {}
    for step, count in re.findall(r"rolled out (\d+) \d (\d+)", log):
        found[int(step)] = found.get(int(step), 0) + int(count)
    return list(found.items())


@pytest.mark.parametrize("name", DIRECTIONS)
def test_t22_another_number_of_processes_is_an_error_on_all_of_them(ended, name):
    (before, rows), (after, _) = DIRECTIONS[name]
    statuses, log = ended[f"{name}, killed"]
    assert statuses == [-9] * before, log[-3000:]
    assert _rollouts(log) == [(0, before * rows * 4)]
    statuses, log = ended[f"{name}, default"]
    assert statuses == [1] * after, log[-3000:]
    assert log.count("checkpoint-3 is of a run that started from something else:\n") == after
    assert log.count(f"  processes: was {before}, is {after}\n") == after
    assert log.count("To go on with what is given now, set resume: changed.") == after
    assert "Traceback" not in log
    assert _rollouts(log) == []


@pytest.mark.parametrize("name", DIRECTIONS)
def test_t22_where_it_is_asked_for_the_rest_of_the_rollout_is_made_anew(ended, name):
    (before, _), (after, rows) = DIRECTIONS[name]
    statuses, log = ended[f"{name}, changed"]
    assert statuses == [0] * after, log[-3000:]
    assert f"changed: processes: was {before}, is {after}\n" in log
    assert _rollouts(log) == [(3, after * rows * 4), (4, after * rows * 4)]
    assert log.count("model saved to") == 1
    assert "Traceback" not in log
