"""kill -9 at any moment: the same command goes on, and ends with the weights of an uninterrupted run, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from killed_runs import check_equal_weights, check_resumed, history, kill_and_resume
from report_agents import AGENT_NAMES

# 24 reports, 2 a step: 12 optimizer steps an epoch would be slow, so the recipe reads 4 reports and one epoch is 4
# rollouts. A rollout serves two optimizer steps (steps_per_generation 2): odd steps lie in the middle of one.
RECIPE = {
    "dtype": "float32",
    "dataset_train_split": "validation",
    "max_pixels": 1024,
    "agents": AGENT_NAMES,
    "reward_funcs": ["my_rewards.letters"],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_generations": 4,
    "max_completion_length": 10,
    "max_steps": 8,
    "learning_rate": 1e-3,
    "beta": 0.05,
    "adaptive_kl": True,
    "kl_target_min": 0.0,
    "kl_target_max": 0.001,
    "temperature": 1.2,
    "temperature_schedule": "linear",
    "temperature_end": 0.8,
    "dynamic_sampling_rounds": 1,
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
REWARD = '''
def letters(completions, completion_ids, **columns):
    """Without contrast now and then, so that groups are drawn anew."""
    values = [sum(ids) / (400 * len(ids)) for ids in completion_ids]
    return [0.5] * len(values) if sum(map(sum, completion_ids)) % 3 == 0 else values
'''
# The last complete checkpoints are those of step 3 (in the middle of a rollout), of step 5 (likewise, in the second
# epoch) and of step 6 (between two rollouts).
KILLS = {
    "uninterrupted": (None, False),
    "killed": (4, False),
    "resumed": (None, False),
    "killed_saving": (6, True),
    "resumed_saving": (None, False),
    "killed_between": (7, False),
    "resumed_between": (None, False),
}


@pytest.fixture(scope="module")
def outcome(tiny_model, report_data, tmp_path_factory, run_warm):
    """How the runs ended; see killed_runs.py."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    recipe = RECIPE | {"model_name_or_path": str(tiny_model), "dataset_name": str(report_data)}
    return kill_and_resume(folder, {"grpo": ("grpo", recipe)}, KILLS, run_warm)


@pytest.fixture(scope="module")
def uninterrupted(outcome):
    status, folder, log = outcome("grpo", "uninterrupted")
    assert status == 0, log[-3000:]
    return folder


@pytest.mark.parametrize(("suffix", "from_step"), [("", 3), ("_saving", 5), ("_between", 6)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(outcome, suffix, from_step):
    folders = check_resumed(outcome, "grpo", suffix, from_step)
    check_equal_weights(*(folder / "model.safetensors" for folder in folders))


def test_run_drew_groups_anew_and_moved_beta(uninterrupted):
    """Otherwise the test above would not show that these resume."""
    logged = history(uninterrupted)
    assert sum(entry.get("dynamic_sampling/groups_drawn", 0) for entry in logged) > 0
    assert len({entry["beta"] for entry in logged if "beta" in entry}) > 2
    assert logged[-2]["epoch"] > 1


def test_old_checkpoints_are_deleted_and_the_last_ones_complete(uninterrupted):
    folders = sorted(path.name for path in uninterrupted.glob("checkpoint-*"))
    assert folders == ["checkpoint-7", "checkpoint-8"]
    assert all((uninterrupted / name / "complete.json").is_file() for name in folders)


# -- by the loop of rollouts ------------------------------------------------------------------------------------------

COUNTED = (
    REWARD
    + '''

from models.decoding.rollout import RollOut

run = RollOut.run


def counted(self):
    """Prints how many drafted tokens were right."""
    found = run(self)
    print("accepted", found.counts.accepted, flush=True)
    return found


RollOut.run = counted
'''
)
ALIKE = RECIPE | {"temperature": 0.2, "temperature_end": 0.15, "rollout_engine": True}
"""Under which completions resemble each other, but are not the same."""
LOOPS = {
    "loop": {},
    "loop_drafts": {"rollout_drafts": 4},
    "own": {"rollout_stream": "own"},
    "own_drafts": {"rollout_stream": "own", "rollout_drafts": 4},
}
MIDST = {name: KILLS[name] for name in ("uninterrupted", "killed", "resumed")}


@pytest.fixture(scope="module")
def by_the_loop(tiny_model, report_data, tmp_path_factory, run_warm):
    folder = tmp_path_factory.mktemp("rollouts")
    (folder / "my_rewards.py").write_text(COUNTED, encoding="utf-8")
    recipe = ALIKE | {"model_name_or_path": str(tiny_model), "dataset_name": str(report_data)}
    return kill_and_resume(folder, {kind: ("grpo", recipe | loop) for kind, loop in LOOPS.items()}, MIDST, run_warm)


def accepted(log: str) -> list[int]:
    """Of each rollout."""
    return [int(line.removeprefix("accepted ")) for line in log.splitlines() if line.startswith("accepted ")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOOPS)
def test_drafts_and_own_numbers_are_resumed_too(by_the_loop, kind):
    """With optimizer, completions and logged figures, and with the same drafts."""
    expected, found = check_resumed(by_the_loop, kind, "", 3)
    check_equal_weights(expected / "model.safetensors", found / "model.safetensors")
    check_equal_weights(*(folder / "checkpoint-7/rollouts_0.safetensors" for folder in (expected, found)))
    optimizers = [torch.load(folder / "checkpoint-8/optimizer.pt", weights_only=True) for folder in (expected, found)]
    torch.testing.assert_close(*optimizers, atol=0, rtol=0)
    assert (found / "samples.jsonl").read_bytes() == (expected / "samples.jsonl").read_bytes()
    whole, rest = (accepted(by_the_loop(kind, name)[2]) for name in ("uninterrupted", "resumed"))
    assert rest == whole[-len(rest) :]
    assert (sum(rest) > 0) == ("drafts" in kind)


def samples(folder: Path) -> list[dict]:
    """Without log-probabilities, of which drafts change the last digits."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        (row.get("tokens") or {}).pop("log_probs", None)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in LOOPS if "drafts" not in kind])
def test_drafts_change_no_weight_of_a_run(by_the_loop, kind):
    one, other = (by_the_loop(name, "uninterrupted")[1] for name in (kind, f"{kind}_drafts"))
    check_equal_weights(one / "model.safetensors", other / "model.safetensors")
    assert samples(one) == samples(other)
