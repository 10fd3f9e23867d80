"""kill -9 while learning factors: the same command ends with the weights of an uninterrupted run."""

import pytest
from factor_runs import BACKBONE, write_labelled
from killed_runs import EVERY_STEP, check_equal_weights, check_resumed, history, kill_and_resume

RECIPE = EVERY_STEP | {  # 48 images, 8 a step: an epoch is 6 steps, so that step 8 dies in the middle of the second
    "head_size": 16,
    "head_dropout": 0.2,
    "bf16": False,
    "per_device_train_batch_size": 8,
    "max_steps": 14,
}
RUNS = {
    "resnet": {"backbone": BACKBONE, "image_size": 32},
    "qwen": {"max_pixels": 1024, "trained_blocks": 1},
}
KILLS = {
    "uninterrupted": (None, False),
    "killed": (8, False),
    "resumed": (None, False),
    "killed_saving": (10, True),
    "resumed_saving": (None, False),
}


@pytest.fixture(scope="module")
def outcome(tiny_model, tmp_path_factory, run_warm):
    """How the runs of each kind of `RUNS` ended; see killed_runs.py."""
    folder = tmp_path_factory.mktemp("factor_resume")
    common = RECIPE | {"dataset_name": str(write_labelled(folder / "data"))}
    recipes = {kind: ("factors", common | settings) for kind, settings in RUNS.items()}
    recipes["qwen"][1]["model_name_or_path"] = str(tiny_model)
    return kill_and_resume(folder, recipes, KILLS, run_warm)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize(("suffix", "from_step"), [("", 7), ("_saving", 9)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(outcome, kind, suffix, from_step):
    expected, found = check_resumed(outcome, kind, suffix, from_step)
    for name in ("model.safetensors", "checkpoint-14/model.safetensors"):  # the best, and the last
        check_equal_weights(expected / name, found / name)
    for name in ("config.json", "factor_results.json"):
        assert (found / name).read_text() == (expected / name).read_text()


@pytest.mark.parametrize("kind", RUNS)
def test_every_step_changed_something(outcome, kind):
    """Otherwise equal weights would not mean much."""
    folder = outcome(kind, "uninterrupted")[1]
    evaluations = [entry["eval_loss"] for entry in history(folder) if "eval_loss" in entry]
    assert len(set(evaluations)) == 14
