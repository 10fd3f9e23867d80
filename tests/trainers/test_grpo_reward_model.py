"""GRPO on a trained reward model: it sees the images, is never trained, and gives what one process gives on two."""

import math
from pathlib import Path

import pytest
import torch
from distributed_runs import GRPO_BY_SGD, deepspeed_config, run_worker

from rewards.registry import build_rewards


@pytest.fixture
def entry(tiny_reward_model) -> dict:
    return {"name": "reward_model", "model": str(tiny_reward_model), "batch_size": 3}


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_two_steps_with_images(make_grpo, entry, tiny_reward_model):
    from models.reward.load import load_reward_model

    calls = []
    [reward] = build_rewards([entry])
    score = reward.function

    def watched(completions, **columns):
        calls.append((completions, columns["prompts"], columns["images"], score(completions, **columns)))
        return calls[-1][-1]

    watched.__name__ = "reward_model"
    trainer = make_grpo(rewards=[watched], max_steps=2)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()

    stored, _ = load_reward_model(tiny_reward_model, "cpu")
    assert len(calls) == 2
    for completions, prompts, images, scores in calls:
        assert all(len(of_row) == 1 for of_row in images)
        texts = [completion[0]["content"] for completion in completions]
        assert scores == pytest.approx(stored.score(prompts, images, texts, batch_size=1).tolist(), abs=1e-5)
        assert all(-5 < value < 5 for value in scores)
    means = logged(trainer, "rewards/reward_model/mean")
    assert means == pytest.approx([sum(scores) / len(scores) for *_, scores in calls], abs=1e-5)
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    untouched = zip(stored.parameters(), score._loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in untouched)
    assert score._loaded.device == trainer.accelerator.device


def test_it_is_not_saved_with_the_policy(make_grpo, entry, tmp_path):
    from safetensors import safe_open

    trainer = make_grpo(rewards=build_rewards([entry, "xml_format"]), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as weights:
        assert not any("score_head" in name for name in weights.keys())  # noqa: SIM118


def test_mixed_rows_with_and_without_images(make_grpo, entry, task_rows):
    rows = [{**row, "images": row["images"] if number % 2 else []} for number, row in enumerate(task_rows())]
    trainer = make_grpo(rewards=build_rewards([entry]), rows=rows, max_steps=2)
    trainer.train()
    assert len(logged(trainer, "rewards/reward_model/mean")) == 2


@pytest.fixture(scope="module")
def learn(tiny_model, tiny_reward_model, report_data, tmp_path_factory, run_warm):
    """Function: (strategy, processes) -> figures of the runs of that strategy, and their folder."""
    common = GRPO_BY_SGD | {"max_steps": 2, "beta": 0.0}
    told = {"model": str(tiny_model), "reward_model": str(tiny_reward_model), "data": str(report_data)}
    told["agents"] = ["blur_filter", "exposure_filter"]

    def settings(folder: Path, strategy: str, processes: int) -> dict:
        own = {"deepspeed": deepspeed_config(strategy), "per_device_train_batch_size": 8 // processes}
        runs = {"whole": {"sharded": False}} | ({"sharded": {"sharded": True}} if strategy == "zero3" else {})
        return told | {
            "runs": {name: common | run | own | {"output_dir": str(folder / name)} for name, run in runs.items()}
        }

    folder = tmp_path_factory.mktemp("reward_model_distribution")
    return run_worker("reward_model_worker.py", folder, [("ddp", 1), ("ddp", 2), ("zero3", 2)], settings, run_warm)


@pytest.mark.parametrize(("strategy", "run"), [("ddp", "whole"), ("zero3", "whole"), ("zero3", "sharded")])
def test_two_processes_learn_what_one_learns(learn, strategy, run):
    expected, found = learn("ddp", 1)[0]["whole"], learn(strategy, 2)[0][run]
    assert len(expected["reward"]) == 2
    assert min(expected["rewards/reward_model/std"]) > 0.01
    for key in ("loss", "reward", "rewards/reward_model/mean", "rewards/reward_model/std"):
        assert found[key] == pytest.approx(expected[key], abs=1e-4), key
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5)
    assert found["trained"] == []
    assert set(found["partitioned"]) == {run == "sharded"}
    if run == "whole":
        assert found["numbers"] == expected["numbers"]
    else:
        assert found["numbers"] == 0  # between forward passes, this process holds no weight in full
