"""kill -9 while learning factors: the same command ends with the weights of an uninterrupted run."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from factor_runs import BACKBONE, write_labelled
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RECIPE = {  # 48 images, 8 a step: an epoch is 6 steps, so that step 8 dies in the middle of the second
    "image_size": 32,
    "head_size": 16,
    "head_dropout": 0.2,
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 8,
    "max_steps": 14,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 2,
    "early_stopping_patience": 50,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
RUNS = {
    "resnet": {"backbone": BACKBONE},
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
def outcome(tiny_model, tmp_path_factory, run_command):
    """Function: (kind, name of a run) -> (how it ended, its output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("factor_resume")
    data = write_labelled(folder / "data")
    RUNS["qwen"]["model_name_or_path"] = str(tiny_model)
    runs = {}
    for kind, settings in RUNS.items():
        for name, (kill_at, during_save) in KILLS.items():
            output = folder / kind / name.replace("resumed", "killed")
            recipe = RECIPE | settings | {"dataset_name": str(data), "output_dir": str(output)}
            path = folder / f"{kind}_{name}.yaml"
            path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            run = {"argv": ["--config", str(path)], "log": str(folder / f"{kind}_{name}.log"), "output": str(output)}
            runs[kind, name] = run | {"kill_at": kill_at, "kill_during_save": during_save}
    statuses, settings = folder / "statuses.json", folder / "settings.json"
    settings.write_text(json.dumps({"runs": list(runs.values()), "statuses": str(statuses)}), encoding="utf-8")
    worker = ROOT / "tests" / "trainers" / "factor_resume_worker.py"
    done = run_command(worker, settings, PYTHONPATH=f"{ROOT}:{worker.parent}", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    ended = dict(zip(runs, json.loads(statuses.read_text(encoding="utf-8")), strict=True))

    def of(kind: str, name: str) -> tuple[int, Path, str]:
        run = runs[kind, name]
        return ended[kind, name], Path(run["output"]), Path(run["log"]).read_text(encoding="utf-8")

    return of


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize(("suffix", "from_step"), [("", 7), ("_saving", 9)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(outcome, kind, suffix, from_step):
    status, expected_folder, log = outcome(kind, "uninterrupted")
    assert status == 0, log[-3000:]
    assert outcome(kind, f"killed{suffix}")[0] == -signal.SIGKILL
    status, folder, log = outcome(kind, f"resumed{suffix}")
    assert status == 0, log[-3000:]
    assert f"resuming from {folder / f'checkpoint-{from_step}'}" in log
    assert history(folder) == history(expected_folder)
    for name in ("model.safetensors", "checkpoint-14/model.safetensors"):  # the best, and the last
        expected, found = load_file(expected_folder / name), load_file(folder / name)
        assert expected.keys() == found.keys()
        assert [key for key in expected if not expected[key].equal(found[key])] == []
    for name in ("config.json", "factor_results.json"):
        assert (folder / name).read_text() == (expected_folder / name).read_text()


def history(output: Path) -> list[dict]:
    """What was logged, without the clock."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    clock = ("runtime", "samples_per_second", "steps_per_second", "total_flos", "train_loss")
    return [{key: value for key, value in entry.items() if not key.endswith(clock)} for entry in state["log_history"]]


@pytest.mark.parametrize("kind", RUNS)
def test_every_step_changed_something(outcome, kind):
    """Otherwise equal weights would not mean much."""
    folder = outcome(kind, "uninterrupted")[1]
    evaluations = [entry["eval_loss"] for entry in history(folder) if "eval_loss" in entry]
    assert len(set(evaluations)) == 14
