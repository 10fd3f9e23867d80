"""Two processes on the CPU learn from stored groups what one process learns."""

from pathlib import Path

import pytest
from distributed_runs import deepspeed_config, run_worker

RUNS = {  # 24 groups of pointers, 4 a step; 6 of completions, 2 a step
    "selector_rce": {"kind": "selector", "method": "rce"},
    "selector_grpo": {"kind": "selector", "method": "offline_grpo"},
    "vlm_rce": {"kind": "vlm", "method": "rce", "learning_rate": 0.05},
    "vlm_grpo": {"kind": "vlm", "method": "offline_grpo", "learning_rate": 0.05, "ratio_level": "step"},
}


@pytest.fixture(scope="module")
def learn(tiny_model, pointer_groups, completion_groups, tmp_path_factory, run_warm):
    """Function: (strategy, processes) -> figures of every run, and their folder."""
    common = {
        "use_cpu": True,
        "per_device_eval_batch_size": 2,
        "max_steps": 4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
    }
    told = {"model": str(tiny_model), "pointers": str(pointer_groups), "completions": str(completion_groups)}

    def settings(folder: Path, strategy: str, processes: int) -> dict:
        runs = {}
        for name, own in RUNS.items():
            batch = (4 if own["kind"] == "selector" else 2) // processes
            runs[name] = common | own | {"output_dir": str(folder / name), "per_device_train_batch_size": batch}
            runs[name]["deepspeed"] = deepspeed_config(strategy)
        return told | {"runs": runs}

    starts = [("ddp", 1), ("ddp", 2), ("zero2", 2)]
    return run_worker("group_distribution_worker.py", tmp_path_factory.mktemp("groups"), starts, settings, run_warm)


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_learn_what_one_learns(learn, strategy, run):
    expected, found = learn("ddp", 1)[0][run], learn(strategy, 2)[0][run]
    assert len(expected["loss"]) == 4
    assert max(abs(value) for value in expected["loss"]) > 1e-3
    for key in ("loss", "kl", "accuracy", "expected_reward"):
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5)
    assert found["evaluation"] == pytest.approx(expected["evaluation"], abs=1e-6)
