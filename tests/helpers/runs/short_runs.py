"""A short run of every training script, as command lines."""

import json
from pathlib import Path

from factor_runs import BACKBONE, write_labelled
from preference_runs import write_preferences
from stored_groups import write_completion_groups, write_pointer_groups

NAMES = ("grpo", "sft", "sft_selector", "rce", "rce_vlm", "offline_grpo", "offline_grpo_vlm", "reward", "factors")
TRAINING = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
}


def flags(**values) -> list[str]:
    """Keyword arguments as command-line options."""
    flags = []
    for name, value in values.items():
        texts = value if isinstance(value, list) else [value]
        shown = (json.dumps(text) if isinstance(text, dict) else str(text) for text in texts)
        flags += [f"--{name}", *shown]
    return flags


def trainers(folder: Path, tiny_model: Path, report_data: Path) -> dict[str, tuple[str, dict]]:
    """Name -> (module, options) of a short run of each training script."""
    from data.tasks import load_rows

    pointers = write_pointer_groups(folder / "pointers")
    completions = write_completion_groups(folder / "completions", load_rows(report_data, "train", [], limit=4))
    vlm = {"model_name_or_path": tiny_model, "dtype": "float32", "max_pixels": 1024, "gradient_checkpointing": False}
    tables = {f"{kind}_table": pointers / f"{name}.safetensors" for kind, name in
              (("query", "queries"), ("example", "examples"))}  # fmt: skip
    selector = {"policy": "selector", "selector": {"hidden_size": 16, "num_layers": 1}, "dataset_name": pointers,
                "shots": [2], **tables}  # fmt: skip
    stored = {"policy": "vlm", "dataset_name": completions, **vlm}
    rewarded = {"dataset_name": report_data, "reward_funcs": ["xml_format"], "num_generations": 2}
    preferences = write_preferences(folder / "preferences")
    labelled = write_labelled(folder / "labelled", pictures=8)
    return {
        "grpo": ("trainers.grpo", rewarded | vlm | {"max_completion_length": 4}),
        "sft": ("trainers.sft", {"dataset_name": report_data} | vlm),
        "sft_selector": ("trainers.sft", selector),
        "rce": ("trainers.rce", selector),
        "rce_vlm": ("trainers.rce", stored),
        "offline_grpo": ("trainers.offline_grpo", selector),
        "offline_grpo_vlm": ("trainers.offline_grpo", stored),
        "reward": ("trainers.reward", {"dataset_name": preferences, "own_folder": False} | vlm),
        "factors": ("trainers.factors", {"dataset_name": labelled, "backbone": BACKBONE, "image_size": 32}),
    }
