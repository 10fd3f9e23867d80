"""The memory estimate that a run prints before it starts: what its recipe asks of each device."""

from dataclasses import dataclass
from typing import Any

import yaml
from accelerate import PartialState

from data.cli.shipped import ACCELERATE_CONFIGS, shipped_file
from models.memory import Load, estimate_memory, format_estimate
from trainers.run.console import say
from trainers.setup.recipes import DataArguments, RecipeError
from trainers.setup.task_data import TokenCounts


@dataclass(frozen=True)
class Spread:
    """How a run is spread over devices."""

    processes: int
    zero_stage: int
    offload: bool


def _launched_spread(args: Any) -> Spread:
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        return Spread(args.world_size, 0, False)
    return Spread(args.world_size, plugin.zero_stage, getattr(plugin, "offload_optimizer_device", None) == "cpu")


def planned_spread(path: str) -> Spread:
    """What a file of accelerate_configs/ would launch."""
    try:
        config = yaml.safe_load(shipped_file(path, ACCELERATE_CONFIGS).read_text(encoding="utf-8"))
        deepspeed = config.get("deepspeed_config") or {}
        offload = deepspeed.get("offload_optimizer_device") == "cpu"
        return Spread(config["num_processes"], deepspeed.get("zero_stage", 0), offload)
    except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
        raise RecipeError(f"accelerate_config: {path}: expected a file that accelerate can launch: {error}") from error


def base_load(arguments: DataArguments, args: Any, model_args: Any, counts: TokenCounts) -> Load:
    """What a recipe asks of each device, as far as all methods have it in common."""
    planned = arguments.validate_only and arguments.accelerate_config is not None
    spread = planned_spread(arguments.accelerate_config) if planned else _launched_spread(args)
    eight_bit = "8bit" in str(args.optim).lower()
    return Load(
        processes=spread.processes,
        zero_stage=spread.zero_stage,
        offload=spread.offload,
        dtype=model_args.dtype if model_args.dtype in ("bfloat16", "float16") else "float32",
        four_bit=bool(model_args.load_in_4bit),
        lora_rank=model_args.lora_r if model_args.use_peft else None,
        optimizer_bytes=2 if eight_bit else (4 if model_args.load_in_4bit else 8),
        freeze_vision=bool(getattr(args, "freeze_vision_tower", False)),
        rows=args.per_device_train_batch_size,
        prompt_tokens=counts.longest,
        patches=4 * counts.images,
        checkpointing=bool(args.gradient_checkpointing),
    )


def say_estimate(config: Any, load: Load) -> None:
    """Prints the memory estimate, where the model's configuration is known."""
    if config is None:
        say("memory estimate: not possible, the model's configuration is out of reach")
    elif PartialState().is_main_process:
        say(format_estimate(estimate_memory(config, load), load))
