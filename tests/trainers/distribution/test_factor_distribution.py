"""Two processes on the CPU learn factors as one does, batch norms included."""

from pathlib import Path

import pytest
from distributed_runs import run_worker
from factor_runs import write_labelled

RUNS = {"resnet": {"learning_rate": 0.1}, "qwen": {"learning_rate": 0.05}}


@pytest.fixture(scope="module")
def learn(tiny_model, tmp_path_factory, run_warm):
    """Function: ("ddp", processes) -> figures of every run, and their folder."""
    data = write_labelled(tmp_path_factory.mktemp("data"))
    common = {
        "use_cpu": True,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
    }

    def settings(folder: Path, strategy: str, processes: int) -> dict:
        runs = {
            name: common
            | own
            | {"kind": name, "output_dir": str(folder / name), "per_device_train_batch_size": 8 // processes}
            for name, own in RUNS.items()
        }
        return {"data": str(data), "model": str(tiny_model), "runs": runs}

    folder = tmp_path_factory.mktemp("factor_distribution")
    return run_worker("factor_distribution_worker.py", folder, [("ddp", 1), ("ddp", 2)], settings, run_warm)


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_learn_what_one_learns(learn, run):
    expected, found = learn("ddp", 1)[0][run], learn("ddp", 2)[0][run]
    assert len(expected["loss"]) == 6
    assert expected["loss"][-1] < expected["loss"][0]
    assert len(expected["eval_loss"]) == 2
    for key in ("loss", "eval_loss", "eval_f1_micro"):
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=1e-5)
    for split in ("validation", "final", "majority"):
        assert found["results"][split] == pytest.approx(expected["results"][split], abs=1e-3)
