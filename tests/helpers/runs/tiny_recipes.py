"""A small recipe of GRPO as a file, for tests of commands that read one."""

from pathlib import Path
from typing import Any

import yaml
from report_agents import AGENT_NAMES


def write_grpo_recipe(folder: Path, model: Path, data: Path, **others: Any) -> Path:
    """Recipe of a model on reports (the fixture `report_data`), whose runs land in `run` beside it.

    Args:
        others: keys that it has besides, or in place of those here.
    """
    recipe = {
        "model_name_or_path": str(model),
        "dtype": "float32",
        "dataset_name": str(data),
        "agents": AGENT_NAMES,
        "max_pixels": 1024,
        "reward_funcs": ["agent_selection", "strict_xml_format"],
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 16,
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        **others,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
