"""Rollouts under ZeRO-3, whose weights TRL gathers for them: processes then make as many forwards as each needs."""

import pytest
from distributed_runs import GRPO_BY_SGD, deepspeed_config, run_worker

ENDS = [*range(100, 140)]
"""So many of 400 tokens that rows end at other places on each process."""
RUNS = {
    "plain": {"rollout_engine": False},
    "looped": {"rollout_engine": True, "rollout_check": True},
    "drafted": {"rollout_engine": True, "rollout_drafts": 4},
}


@pytest.mark.slow
def test_processes_of_zero_3_roll_out_by_themselves(tiny_model, report_data, tmp_path, run_warm):
    told = {"model": str(tiny_model), "data": str(report_data), "max_pixels": 1024, "agents": ["blur_filter"]}
    common = GRPO_BY_SGD | {
        "canned": False,
        "text_only": [1],
        "per_device_train_batch_size": 4,
        "max_completion_length": 40,
        "max_steps": 5,
        "generation_kwargs": {"eos_token_id": ENDS},
        "max_sampling_difference": None,  # TRL does not know of these ends, and learns the padding behind them
        "deepspeed": deepspeed_config("zero3"),
    }
    runs = {name: common | run | {"output_dir": str(tmp_path / name)} for name, run in RUNS.items()}
    figures, _ = run_worker(
        "distribution_worker.py", tmp_path, [("zero3", 2)], lambda *_: told | {"runs": runs}, run_warm
    )("zero3", 2)
    plain = figures.pop("plain")
    assert plain.pop("forwards") == [None, None]
    for found in figures.values():
        one, other = found.pop("forwards")
        assert one != other
        assert found == plain
