"""kill -9 while learning from stored groups: the same command ends with the weights of an uninterrupted run."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
# 12 groups, 4 a step: an epoch is 3 steps. Step 5 dies in the middle of the second epoch, whose old log-probs come
# from its start; step 7 right after the start of the third.
COMMON = {
    "selector": {"hidden_size": 16, "num_layers": 1, "dropout": 0.5},
    "shots": [2],
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "max_steps": 8,
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
GRPO = {"curriculum_top_k": 1, "curriculum_share": 0.6, "kl_target_max": 0.001, "kl_target_min": 0.0001}
METHODS = {"rce": {}, "offline_grpo": GRPO}
KILLS = {"uninterrupted": (None, False), "killed": (5, False), "resumed": (None, False)}
KILLS_WHILE_SAVING = {"killed_saving": (7, True), "resumed_saving": (None, False)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, run_command):
    """Function: (method, name of a run) -> (how it ended, its output folder, what it printed)."""
    from stored_groups import write_pointer_groups

    folder = tmp_path_factory.mktemp("group_resume")
    data = write_pointer_groups(folder / "data", queries=18)
    runs = {}
    for method, settings in METHODS.items():
        for name, (kill_at, during_save) in {**KILLS, **KILLS_WHILE_SAVING}.items():
            output = folder / method / name.replace("resumed", "killed")
            recipe = COMMON | settings | {"dataset_name": str(data), "output_dir": str(output)}
            recipe |= {f"{table}_table": str(data / f"{file}.safetensors") for table, file in TABLES.items()}
            path = folder / f"{method}_{name}.yaml"
            path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            run = {"script": method, "argv": ["--config", str(path)], "log": str(folder / f"{method}_{name}.log")}
            runs[method, name] = run | {"kill_at": kill_at, "kill_during_save": during_save, "output": str(output)}
    statuses = folder / "statuses.json"
    settings = folder / "settings.json"
    settings.write_text(json.dumps({"runs": list(runs.values()), "statuses": str(statuses)}), encoding="utf-8")
    worker = ROOT / "tests" / "trainers" / "group_resume_worker.py"
    done = run_command(worker, settings, PYTHONPATH=f"{ROOT}:{worker.parent}", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    ended = dict(zip(runs, json.loads(statuses.read_text(encoding="utf-8")), strict=True))

    def of(method: str, name: str) -> tuple[int, Path, str]:
        run = runs[method, name]
        return ended[method, name], Path(run["output"]), Path(run["log"]).read_text(encoding="utf-8")

    return of


TABLES = {"query": "queries", "example": "examples"}


def history(output: Path) -> list[dict]:
    """What was logged, without the clock."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    clock = ("runtime", "samples_per_second", "steps_per_second", "total_flos", "train_loss")
    return [{key: value for key, value in entry.items() if not key.endswith(clock)} for entry in state["log_history"]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("suffix", "from_step"), [("", 4), ("_saving", 6)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(outcome, method, suffix, from_step):
    status, expected_folder, log = outcome(method, "uninterrupted")
    assert status == 0, log[-3000:]
    assert outcome(method, f"killed{suffix}")[0] == -signal.SIGKILL
    status, folder, log = outcome(method, f"resumed{suffix}")
    assert status == 0, log[-3000:]
    assert f"resuming from {folder / f'checkpoint-{from_step}'}" in log
    expected, found = load_file(expected_folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    assert history(folder) == history(expected_folder)


def test_there_was_something_to_resume(outcome):
    """Otherwise the test above would not show that these resume."""
    logged = history(outcome("offline_grpo", "uninterrupted")[1])
    assert len({entry["beta"] for entry in logged if "beta" in entry}) > 2
    assert any(abs(entry["ratio"] - 1) > 1e-3 for entry in logged if "ratio" in entry)
    temperatures = [entry["temperature"] for entry in history(outcome("rce", "uninterrupted")[1]) if "loss" in entry]
    assert temperatures == sorted(temperatures, reverse=True)
    assert len(set(temperatures)) == 8


def test_a_checkpoint_of_another_trainer_is_refused(outcome, run_command):
    """Its policy is not the one that this stage started from."""
    _, folder, _ = outcome("rce", "uninterrupted")
    recipe = folder.parent.parent / "offline_grpo_uninterrupted.yaml"
    checkpoint = sorted(folder.glob("checkpoint-*"))[0]
    done = run_command(
        "trainers/offline_grpo.py",
        *("--config", recipe, "--resume_from_checkpoint", checkpoint, "--output_dir", folder.parent / "mixed"),
    )
    assert done.returncode == 1
    assert f"{checkpoint} has no log_probs.safetensors: another trainer wrote it" in done.stderr
