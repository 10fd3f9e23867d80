"""A small GRPO trainer on rows with images, and one rollout of it that is as it should be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import write_grpo_recipe

ROWS = 3


@pytest.fixture(scope="session")
def lively_model(tiny_model, tmp_path_factory) -> Path:
    """Folder of the tiny model, made to look at the picture and to say various things."""
    from models.families.loading import load_vlm

    folder = tmp_path_factory.mktemp("model") / "lively"
    model, processor = load_vlm(str(tiny_model), device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight")):
                weight.mul_(4)
            if name.endswith("lm_head.weight"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def diagnosed(lively_model, report_data, tmp_path_factory):
    """Function: changes of the recipe -> (trainer, rows with opened images)."""
    from trl import ModelConfig

    from trainers.diagnosis.methods.grpo import load_trainer
    from trainers.grpo import GRPOConfig, GRPOScriptArguments
    from trainers.setup.recipes import parse_recipe
    from trainers.setup.task_data import load_task_rows

    def make(**others: Any) -> tuple[Any, list[dict]]:
        sizes = {"num_generations": 4, "per_device_train_batch_size": 12, "max_completion_length": 24, "beta": 0.04}
        path = write_grpo_recipe(tmp_path_factory.mktemp("recipe"), lively_model, report_data, **sizes | others)
        script, args, model_args, _ = parse_recipe(
            (GRPOScriptArguments, GRPOConfig, ModelConfig), ["--config", str(path)]
        )
        rows = load_task_rows(script, "train", check_files=False)[:ROWS]
        trainer = load_trainer(script, args, model_args, rows)
        return trainer, [dict(trainer.train_dataset[number]) for number in range(ROWS)]

    return make
