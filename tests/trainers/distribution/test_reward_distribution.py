"""Reward models on two processes: DDP, ZeRO-2 and ZeRO-3 learn what one process learns, and save what they learned."""

from pathlib import Path

import pytest
import torch
from distributed_runs import STRATEGIES, deepspeed_config, run_worker
from preference_runs import settings, write_preferences

from models.families.loading import load_processor
from models.reward.load import from_backbone, load_reward_model


@pytest.fixture(scope="module")
def reward_model(tiny_model, tmp_path_factory):
    """Folder of a reward model: a new head would depend on how many processes make it."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(0)
    from_backbone(tiny_model, {"language_head": True}).save_pretrained(folder)
    load_processor(str(tiny_model), max_pixels=1024).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def learn(reward_model, tmp_path_factory, run_warm):
    """Function: (strategy, processes) -> figures of that strategy's runs, and their folder."""
    data = tmp_path_factory.mktemp("preferences")
    everywhere = write_preferences(data / "pictures")
    rarely = write_preferences(data / "rarely", without_image=tuple(number for number in range(16) if number % 5))

    def told(folder: Path, strategy: str, processes: int) -> dict:
        common = settings(
            per_device_train_batch_size=4 // processes,
            per_device_eval_batch_size=1,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            deepspeed=deepspeed_config(strategy),
        )
        runs = {
            "pictures": {"data": str(everywhere), "args": common | {"lm_loss_weight": 0.5}},
            "rarely": {"data": str(rarely), "args": common | {"loss_type": "hinge", "max_steps": 4}},
        }
        for name in runs:
            runs[name]["output_dir"] = str(folder / name)
        return {"model": str(reward_model), "runs": runs}

    starts = [("ddp", 1), *((strategy, 2) for strategy in STRATEGIES)]
    return run_worker("preference_worker.py", tmp_path_factory.mktemp("reward_distribution"), starts, told, run_warm)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("run", ["pictures", "rarely"])
def test_two_processes_learn_what_one_learns(learn, strategy, run):
    expected, found = learn("ddp", 1)[0][run], learn(strategy, 2)[0][run]
    assert len(expected["loss"]) == (3 if run == "pictures" else 4)
    for key in ("loss", "accuracy", "score_gap", "score_std", "lm_loss"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5), key
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5, abs=1e-8)
    assert len(found["weights"]) > 10
    for key in ("eval_accuracy", "eval_score_gap", "eval_score_std"):  # of 5 records: not a whole number of batches
        assert found["eval"][key] == pytest.approx(expected["eval"][key], abs=1e-5), key


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_saved_scores_alike(learn, strategy, reward_model):
    saved = [learn(name, count)[1] / "pictures" for name, count in (("ddp", 1), (strategy, 2))]
    models = [load_reward_model(folder, device="cpu")[0] for folder in (*saved, reward_model)]
    rows = (["what color is the shape?"] * 3, None, ["It is red.", "blue", "I do not know, and why?"])
    first, second, before = (model.score(*rows) for model in models)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)
    assert (first - before).abs().max() > 1e-3
