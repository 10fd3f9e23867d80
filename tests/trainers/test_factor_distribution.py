"""Two processes on the CPU learn factors as one does, batch norms included."""

import json
from pathlib import Path

import pytest
from factor_runs import write_labelled
from test_distribution import launch

WORKER = Path(__file__).with_name("factor_distribution_worker.py")
RUNS = {"resnet": {"learning_rate": 0.1}, "qwen": {"learning_rate": 0.05}}


@pytest.fixture(scope="module")
def learn(tiny_model, tmp_path_factory):
    """Function: processes -> figures of every run."""
    data = write_labelled(tmp_path_factory.mktemp("data"))
    results = {}

    def run(processes: int) -> dict:
        if processes in results:
            return results[processes]
        folder = tmp_path_factory.mktemp(f"processes_{processes}")
        common = {
            "use_cpu": True,
            "per_device_train_batch_size": 8 // processes,
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
        settings = {
            "data": str(data),
            "model": str(tiny_model),
            "runs": {
                name: {**common, **own, "kind": name, "output_dir": str(folder / name)} for name, own in RUNS.items()
            },
            "output": str(folder / "figures.json"),
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        paths = f"{WORKER.parents[2]}:{WORKER.parent}"
        done = launch(processes, WORKER, str(folder / "settings.json"), PYTHONPATH=paths)
        assert done.returncode == 0, done.stderr[-4000:]
        results[processes] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        return results[processes]

    return run


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_learn_what_one_learns(learn, run):
    expected, found = learn(1)[run], learn(2)[run]
    assert len(expected["loss"]) == 6
    assert expected["loss"][-1] < expected["loss"][0]
    assert len(expected["eval_loss"]) == 2
    for key in ("loss", "eval_loss", "eval_f1_micro"):
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=1e-5)
    for split in ("validation", "final", "majority"):
        assert found["results"][split] == pytest.approx(expected["results"][split], abs=1e-3)
