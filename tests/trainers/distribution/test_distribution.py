"""Two processes on the CPU: DDP, ZeRO-2 and ZeRO-3 learn what one process learns, and stop together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed_runs import GRPO_BY_SGD, STRATEGIES, deepspeed_config, run_worker
from places import ROOT


@pytest.fixture(scope="module")
def learn(tiny_model, report_data, tmp_path_factory, run_warm):
    """Function: (strategy, processes) -> figures of the three runs of that strategy, and their folder."""
    runs = {
        # Two groups a step: with 2 processes, each has one of them. Rows 1, 3, 5 are those of the second process.
        "pictures": {"canned": True, "text_only": []},
        "one_without": {"canned": True, "text_only": [1, 3, 5]},
        "rollouts": {"canned": False, "text_only": [1, 2], "dynamic_sampling_rounds": 1, "max_steps": 2},
        "off": {"canned": False, "text_only": [], "max_completion_length": 4, "off_by": 3.0},
    }
    told = {
        "model": str(tiny_model),
        "data": str(report_data),
        "max_pixels": 1024,
        "agents": ["blur_filter", "exposure_filter", "resolution_filter"],
    }

    def settings(folder: Path, strategy: str, processes: int) -> dict:
        own = {"deepspeed": deepspeed_config(strategy), "per_device_train_batch_size": 8 // processes}
        left_out = (["rollouts"] if processes == 1 else []) + ([] if (strategy, processes) == ("ddp", 2) else ["off"])
        names = [name for name in runs if name not in left_out]
        return told | {
            "runs": {name: GRPO_BY_SGD | runs[name] | own | {"output_dir": str(folder / name)} for name in names}
        }

    starts = [("ddp", 1), *((strategy, 2) for strategy in STRATEGIES)]
    return run_worker("distribution_worker.py", tmp_path_factory.mktemp("distribution"), starts, settings, run_warm)


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
    from models.families.loading import load_vlm

    figures, folder = learn(strategy, 2)
    assert len(figures["rollouts"]["reward"]) == 2
    model, _ = load_vlm(str(folder / "rollouts"), device="cpu")
    original, _ = load_vlm(str(tiny_model), device="cpu")
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    assert any(not trained.equal(untrained) for trained, untrained in pairs)


def test_a_sampler_that_is_wrong_on_rank_1_stops_both_ranks(learn):
    error = learn("ddp", 2)[0]["off"]["error"]  # of rank 0; the other one ended too, or there were no figures
    assert error.startswith("step 1: the log-probabilities of the sampled tokens")
    assert "differ by 1." in error  # the mean over both


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
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *start, str(ROOT / "trainers" / "grpo.py"), "--config", str(recipe)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "FAILED_AT": str(failed_at)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    waited = time.time() - float(failed_at.read_text(encoding="utf-8"))
    assert done.returncode != 0
    assert waited < 30
    message = [line for line in done.stderr.splitlines() if "picky" in line and "KeyError" in line]
    assert len(message) == 1
    assert "rank 1" in message[0]
    assert "colour" in message[0]
    assert "Traceback" not in done.stderr.split("error: ")[0]
