"""Trainers as a program uses them: a model by its name, a data set of rows, and everything else as settings say."""

import json

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file

from data.io.records import RecordError
from models.families.loading import load_processor, pixel_bounds
from trainers.reward import RewardConfig, RewardTrainer

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False,
         "disable_tqdm": True, "per_device_train_batch_size": 2, "max_steps": 1, "logging_steps": 1}  # fmt: skip


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (60 * number, 0, 0))


def files_of(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


PREFERENCES = Dataset.from_list(
    [
        {"prompt": f"which colour? {number}", "images": [picture(number)], "chosen": "red", "rejected": "green"}
        for number in range(4)
    ]
)


def test_a_reward_model_by_trls_arguments(tiny_model, tmp_path):
    asked = []

    def agreement(prediction):
        asked.append((prediction.predictions, prediction.label_ids))
        return {"agreement": float(np.mean(prediction.predictions[:, 0] > prediction.predictions[:, 1]))}

    trainer = RewardTrainer(
        model=str(tiny_model),
        args=RewardConfig(str(tmp_path / "run"), max_pixels=784, **QUIET),
        train_dataset=PREFERENCES,
        eval_dataset=PREFERENCES.select(range(3)),
        compute_metrics=agreement,
        peft_config=LoraConfig(r=2, exclude_modules=["q_proj"]),
        report=True,
    )
    trainer.train()
    figures = trainer.evaluate()
    trainer.save_model()
    (scores, ranks), *_ = asked
    assert (scores.shape, ranks.tolist()) == ((3, 2), [[0, 1]] * 3)
    assert figures["eval_agreement"] == figures["eval_accuracy"]
    assert pixel_bounds(load_processor(str(tmp_path / "run"))).maximum == 784
    stored = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any("score_head" in name for name in stored)
    assert any("k_proj.lora_A" in name for name in stored)
    assert not any("q_proj" in name for name in stored)
    assert {"report.html", "README.md", "samples.jsonl", "recipe.yaml", "figures"} <= files_of(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (record["info"]["kind"], record["info"]["rows"]) == ("reward", {"training": 4, "evaluation": 3})
    assert record["info"]["base_model"] == str(tiny_model)


@pytest.mark.parametrize("key", ["min_pixels", "max_pixels"])
def test_bounds_of_settings_and_processor_that_differ(tiny_model, tmp_path, key):
    args = RewardConfig(str(tmp_path), **{key: 900}, **QUIET)
    with pytest.raises(ValueError, match=f"{key}: the configuration says 900, the processing_class"):
        RewardTrainer(str(tiny_model), args, None, PREFERENCES, processing_class=load_processor(str(tiny_model)))


def test_preferences_are_checked_before_training(tiny_model, tmp_path):
    broken = [{"prompt": "what?", "images": [{"bytes": b"none", "path": None}], "chosen": "a", "rejected": "b"}]
    with pytest.raises(RecordError, match="train_dataset, row 1: field 'images'"):
        RewardTrainer(str(tiny_model), RewardConfig(str(tmp_path), **QUIET), train_dataset=Dataset.from_list(broken))
    args = RewardConfig(str(tmp_path), max_prompt_length=3, **QUIET)
    with pytest.raises(RecordError, match=r"expected at most 3 \(max_prompt_length\)"):
        RewardTrainer(str(tiny_model), args, train_dataset=PREFERENCES)
