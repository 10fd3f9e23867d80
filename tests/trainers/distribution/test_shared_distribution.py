"""Shared prompts under ZeRO-3 on two processes, on which different things repeat."""

import json

import pytest
from distributed_runs import deepspeed_config, run_worker
from safetensors.torch import load_file
from stored_groups import write_completion_groups

from models.families.loading import load_vlm


@pytest.mark.slow
def test_zero_3_learns_the_same_weights(tiny_model, task_rows, tmp_path, run_warm):
    rows = [dict(row) for row in task_rows()[:8]]
    rows[3]["images"] = rows[2]["images"]  # two prompts of a batch about one image
    groups = write_completion_groups(tmp_path / "groups", rows, without_image=[1])
    args = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "per_device_train_batch_size": 2,  # groups of 1 to 4: in some batches of a process nothing repeats
        "max_steps": 6,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "optim": "sgd",
        "learning_rate": 0.1,
        "train_sampling_strategy": "sequential",
        "deepspeed": deepspeed_config("zero3"),
    }
    settings = {"model": str(tiny_model), "completions": str(groups), "args": args, "folder": str(tmp_path)}
    settings |= {"runs": {"shared": True, "plain": False}}
    run_worker("sharing_worker.py", tmp_path / "starts", [("zero3", 2)], lambda *_: settings, run_warm)("zero3", 2)
    shared, plain = (load_file(tmp_path / f"{name}.safetensors") for name in ("shared", "plain"))
    assert max((shared[name] - plain[name]).abs().max() for name in plain) <= 1e-6
    start = dict(load_vlm(str(tiny_model), device="cpu", dtype="float32")[0].named_parameters())
    assert max((plain[name] - start[name]).abs().max() for name in plain) > 1e-3
    for process in range(2):
        tokens = [json.loads((tmp_path / f"{name}_{process}.json").read_text()) for name in ("shared", "plain")]
        assert len(tokens[0]) == len(tokens[1]) == 6
        assert sum(tokens[0]) < 0.8 * sum(tokens[1])
