"""Two processes on the CPU: DDP, ZeRO-2 and ZeRO-3 learn what one process learns, and stop together."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "trainers" / "distribution_worker.py"
STRATEGIES = ("ddp", "zero2", "zero3")


def deepspeed_config(stage: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": 0,
        },
    }


def launch(processes: int, script: Path, *arguments: str, timeout: float = 400, **environment: str):
    """Runs a script on so many processes, as `accelerate launch` does."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start = [sys.executable] if processes == 1 else start
    return subprocess.run(
        [*start, str(script), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def learn(tiny_model, report_data, tmp_path_factory):
    """Function: (strategy, processes) -> figures of the three runs of that strategy."""
    results = {}

    def settings(folder: Path, strategy: str, processes: int) -> dict:
        common = {
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 8 // processes,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 3,
            "report_to": "none",
            "save_strategy": "no",
            "remove_unused_columns": False,
            "logging_steps": 1,
            "disable_tqdm": True,
            "shuffle_dataset": False,
            "beta": 0.1,
            "optim": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "model_init_kwargs": {"dtype": "float32"},
            "deepspeed": None if strategy == "ddp" else deepspeed_config(int(strategy[-1])),
        }
        runs = {
            # Two groups a step: with 2 processes, each has one of them. Rows 1, 3, 5 are those of the second process.
            "pictures": {"canned": True, "text_only": []},
            "one_without": {"canned": True, "text_only": [1, 3, 5]},
            "rollouts": {"canned": False, "text_only": [1, 2], "dynamic_sampling_rounds": 1, "max_steps": 2},
        }
        if processes == 1:
            runs.pop("rollouts")
        return {name: {**common, **run, "output_dir": str(folder / name)} for name, run in runs.items()}

    def run(strategy: str, processes: int) -> dict:
        if (strategy, processes) not in results:
            folder = tmp_path_factory.mktemp(strategy)
            agents = ["blur_filter", "exposure_filter", "resolution_filter"]
            content = {"model": str(tiny_model), "data": str(report_data), "agents": agents}
            content |= {"runs": settings(folder, strategy, processes), "output": str(folder / "figures.json")}
            (folder / "settings.json").write_text(json.dumps(content), encoding="utf-8")
            done = launch(processes, WORKER, str(folder / "settings.json"))
            assert done.returncode == 0, done.stderr[-4000:]
            figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
            results[strategy, processes] = (figures, folder)
        return results[strategy, processes]

    return run


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("run", ["pictures", "one_without"])
def test_two_processes_learn_what_one_learns(learn, strategy, run):
    expected, found = learn("ddp", 1)[0][run], learn(strategy, 2)[0][run]
    assert len(expected["loss"]) == 3
    assert max(abs(value) for value in expected["loss"]) > 1e-3
    for key in ("loss", "reward", "kl"):
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_with_rollouts_finishes_and_its_model_loads(learn, strategy, tiny_model):
    from models.loading import load_vlm

    figures, folder = learn(strategy, 2)
    assert len(figures["rollouts"]["reward"]) == 2
    model, _ = load_vlm(str(folder / "rollouts"), device="cpu")
    original, _ = load_vlm(str(tiny_model), device="cpu")
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    assert any(not trained.equal(untrained) for trained, untrained in pairs)


FAILING_REWARD = '''
import os, time
def picky(completions, **columns):
    """Fails on the second process only."""
    if os.environ["RANK"] == "1":
        open(os.environ["FAILED_AT"], "w").write(str(time.time()))
        raise KeyError("colour")
    return [float(number) for number in range(len(completions))]
'''


def test_a_reward_that_fails_on_rank_1_ends_both_ranks_with_one_message(tiny_model, report_data, tmp_path):
    (tmp_path / "my_rewards.py").write_text(FAILING_REWARD, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""\
model_name_or_path: {tiny_model}
dtype: float32
dataset_name: {report_data}
max_pixels: 1024
reward_funcs: [my_rewards.picky]
output_dir: {tmp_path / "run"}
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 4
num_generations: 4
max_completion_length: 8
max_steps: 3
report_to: none
disable_tqdm: true
""",
        encoding="utf-8",
    )
    failed_at = tmp_path / "failed_at"
    done = launch(
        2,
        ROOT / "trainers" / "grpo.py",
        *("--config", str(recipe)),
        PYTHONPATH=f"{ROOT}:{tmp_path}",
        FAILED_AT=str(failed_at),
    )
    waited = time.time() - float(failed_at.read_text(encoding="utf-8"))
    assert done.returncode != 0
    assert waited < 30
    message = [line for line in done.stderr.splitlines() if "picky" in line and "KeyError" in line]
    assert len(message) == 1
    assert "rank 1" in message[0]
    assert "colour" in message[0]
    assert "Traceback" not in done.stderr.split("error: ")[0]
