"""kill -9 while learning from stored groups: the same command ends with the weights of an uninterrupted run."""

import pytest
from killed_runs import EVERY_STEP, check_equal_weights, check_resumed, history, kill_and_resume

# 12 groups, 4 a step: an epoch is 3 steps. Step 2 dies before old log-probs were ever refreshed; step 5 in the middle
# of the second epoch, whose old log-probs come from its start; step 7 right after the start of the third.
COMMON = EVERY_STEP | {
    "selector": {"hidden_size": 16, "num_layers": 1, "dropout": 0.5},
    "shots": [2],
    "per_device_train_batch_size": 4,
    "max_steps": 8,
}
GRPO = {"curriculum_best_and_worst": 1, "curriculum_share": 0.6, "kl_target_max": 0.001, "kl_target_min": 0.0001}
METHODS = {"rce": {}, "offline_grpo": GRPO}
KILLS = {
    "uninterrupted": (None, False),
    "killed": (5, False),
    "resumed": (None, False),
    "killed_saving": (7, True),
    "resumed_saving": (None, False),
    "killed_early": (2, False),
    "resumed_early": (None, False),
}


TABLES = {"query_table": "queries.safetensors", "example_table": "examples.safetensors"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, run_warm):
    """How the runs of each method ended; see killed_runs.py."""
    from stored_groups import write_pointer_groups

    folder = tmp_path_factory.mktemp("group_resume")
    data = write_pointer_groups(folder / "data", queries=18)
    common = COMMON | {"dataset_name": str(data)} | {key: str(data / file) for key, file in TABLES.items()}
    recipes = {method: (method, common | settings) for method, settings in METHODS.items()}
    return kill_and_resume(folder, recipes, KILLS, run_warm)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("suffix", "from_step"), [("_early", 1), ("", 4), ("_saving", 6)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(outcome, method, suffix, from_step):
    folders = check_resumed(outcome, method, suffix, from_step)
    check_equal_weights(*(folder / "model.safetensors" for folder in folders))


def test_there_was_something_to_resume(outcome):
    """Otherwise the test above would not show that these resume."""
    logged = history(outcome("offline_grpo", "uninterrupted")[1])
    assert len({entry["beta"] for entry in logged if "beta" in entry}) > 2
    assert any(abs(entry["ratio"] - 1) > 1e-3 for entry in logged if "ratio" in entry)
    temperatures = [entry["temperature"] for entry in history(outcome("rce", "uninterrupted")[1]) if "loss" in entry]
    assert temperatures == sorted(temperatures, reverse=True)
    assert len(set(temperatures)) == 8


def test_a_checkpoint_of_another_trainer_is_refused(outcome, run_warm):
    """Its policy is not the one that this stage started from."""
    _, folder, _ = outcome("rce", "uninterrupted")
    recipe = folder.parent.parent / "offline_grpo_uninterrupted.yaml"
    checkpoint = sorted(folder.glob("checkpoint-*"))[0]
    done = run_warm(
        "trainers/offline_grpo.py",
        *("--config", recipe, "--resume_from_checkpoint", checkpoint, "--output_dir", folder.parent / "mixed"),
    )
    assert done.returncode == 1
    assert f"error: {checkpoint} is of a run that started from something else:" in done.stderr
    assert "  trainer: was RCE, is offline GRPO\n" in done.stderr
