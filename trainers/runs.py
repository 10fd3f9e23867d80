"""What every training script does around its trainer: readable errors, data and checks, resuming, leaving a record."""

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from data.images import ImageError
from data.records import RecordError
from filter_agents.registry import AgentError
from models.known import (
    PUBLISHED_MAX_PIXELS,
    PUBLISHED_MIN_PIXELS,
    PUBLISHED_PATCH_SIZE,
    known_config,
)
from models.loading import PixelBounds, load_processor, pixel_bounds
from models.memory import Load, estimate_memory, format_estimate
from rewards.guard import RewardError
from rewards.registry import RewardSpecError
from trainers.checkpoints import checkpoint_folders, newest_complete_checkpoint
from trainers.console import shorten_output
from trainers.publishing import PublishError, ReportCallback, keep_token_out, store_recipe, without_secrets
from trainers.recipes import DataArguments, Recipe, RecipeError
from trainers.report import RunInfo
from trainers.task_data import TokenCounts, check_lengths, count_tokens, load_task_rows

logger = logging.getLogger(__name__)

USER_ERRORS = (RecipeError, RecordError, RewardSpecError, AgentError, ImageError, PublishError)
GRACE_SECONDS = 3
"""How long the other processes leave the main one to say what is wrong before they end."""


def say(message: str) -> None:
    """Prints on the main process."""
    if PartialState().is_main_process:
        sys.stdout.write(message + "\n")
        sys.stdout.flush()


def _end(message: str) -> None:
    """Ends every process with status 1 after the main one has printed the message: once, and before the launcher
    kills what is left."""
    state = PartialState()
    if state.is_main_process:
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    else:
        time.sleep(GRACE_SECONDS)
    sys.stderr.flush()
    os._exit(1) if state.num_processes > 1 else sys.exit(1)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns what a user can mend into one message and exit status 1; anything else is a traceback as usual."""
    try:
        yield
    except (*USER_ERRORS, RewardError) as error:
        _end(str(error))


@dataclass(frozen=True)
class ModelAtHand:
    """What could be found out about a model before loading it; both are `None` if neither folder nor Hub has it."""

    config: Any
    processor: Any
    bounds: PixelBounds


def adapters_base(name: str) -> str | None:
    """The model that a folder of adapters was trained on; `None` if the name is no such folder."""
    path = Path(name) / "adapter_config.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]


def inspect_model(name: str, arguments: DataArguments, required: bool) -> ModelAtHand:
    """Configuration and processor of a model, which may be out of reach when a recipe is only validated.

    Args:
        required: an unreachable model is an error.

    Raises:
        RecipeError: the model cannot be loaded, or its pixel bounds are inconsistent.
    """
    from transformers import AutoConfig

    base = adapters_base(name)
    try:
        config = AutoConfig.from_pretrained(base or name)
        of_base = base is not None and not any(Path(name).glob("*processor_config.json"))
        processor = load_processor(base if of_base else name, arguments.min_pixels, arguments.max_pixels)
        return ModelAtHand(config, processor, pixel_bounds(processor))
    except ValueError as error:
        if "min_pixels" in str(error):
            raise RecipeError(str(error)) from error
        problem = error
    except Exception as error:  # the Hub's client raises many kinds
        problem = error
    if required:
        raise RecipeError(f"model_name_or_path: '{name}' cannot be loaded: {problem}") from problem
    say(f"note: {name} cannot be reached from here; token counts are upper bounds")
    low = arguments.min_pixels or PUBLISHED_MIN_PIXELS
    high = max(low, arguments.max_pixels or PUBLISHED_MAX_PIXELS)
    return ModelAtHand(known_config(name), None, PixelBounds(low, high, PUBLISHED_PATCH_SIZE))


def load_checked_rows(
    arguments: DataArguments, split: str, model: ModelAtHand
) -> tuple[list[dict], TokenCounts | None]:
    """Rows of a split; on the main process every image is decoded and every prompt counted.

    Raises:
        RecordError: lists what is wrong with the data.
    """
    main = PartialState().is_main_process
    rows = load_task_rows(arguments, split, check_files=main)
    if not main:
        return rows, None
    counts = count_tokens(rows, arguments.dataset_name, model.bounds, model.processor)
    check_lengths(counts, arguments.dataset_name, arguments.max_prompt_length, "max_prompt_length")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) if model.config else None
    check_lengths(counts, arguments.dataset_name, positions, "positions of the model")
    kind = "exact" if counts.exact else "upper bound"
    say(f"{split}: {len(rows)} rows; longest prompt {counts.longest} tokens ({kind}), {counts.images} visual at most")
    return rows, counts


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


def _planned_spread(path: str) -> Spread:
    """What a file of accelerate_configs/ would launch."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        deepspeed = config.get("deepspeed_config") or {}
        offload = deepspeed.get("offload_optimizer_device") == "cpu"
        return Spread(config["num_processes"], deepspeed.get("zero_stage", 0), offload)
    except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
        raise RecipeError(f"accelerate_config: {path}: expected a file that accelerate can launch: {error}") from error


def base_load(arguments: DataArguments, args: Any, model_args: Any, counts: TokenCounts) -> Load:
    """What a recipe asks of each device, as far as all methods have it in common."""
    planned = arguments.validate_only and arguments.accelerate_config is not None
    spread = _planned_spread(arguments.accelerate_config) if planned else _launched_spread(args)
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


def checkpoint_to_resume(args: Any, resume: bool) -> str | None:
    """The checkpoint that a run goes on from: the one named, or the newest complete one of its output folder.

    Raises:
        RecipeError: the one named does not exist.
    """
    named = args.resume_from_checkpoint
    if named is not None:
        if not (Path(named) / "trainer_state.json").is_file():
            raise RecipeError(f"resume_from_checkpoint: no checkpoint in '{named}' (expected trainer_state.json)")
        return named
    folders = checkpoint_folders(args.output_dir)
    newest = newest_complete_checkpoint(args.output_dir)
    if not folders:
        return None
    if not resume:
        raise RecipeError(
            f"output_dir: {args.output_dir} holds checkpoints of an earlier run and resume is false; "
            "choose another folder or remove them"
        )
    ignored = [folder.name for folder in folders if newest is None or folder.name > newest.name]
    say(f"resuming from {newest}" if newest else f"starting anew: no checkpoint in {args.output_dir} is complete")
    if ignored and newest is None:
        logger.warning("ignoring incomplete checkpoints: %s", ", ".join(ignored))
    return None if newest is None else str(newest)


def model_init_kwargs(args: Any, model_args: Any) -> dict[str, Any]:
    """Keyword arguments with which policy and reference are loaded."""
    chosen = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    given = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    return {key: value for key, value in chosen.items() if value is not None} | given


def lora_config(model_args: Any, freeze_vision_tower: bool) -> Any:
    """The recipe's adapters, or `None`; a frozen vision tower gets none."""
    from trl import get_peft_config

    config = get_peft_config(model_args)
    if config is not None and freeze_vision_tower:
        config.exclude_modules = r".*\bvisual\..*"
    return config


def policy_arguments(args: Any, model_args: Any) -> dict[str, Any]:
    """What a trainer takes as `model`, `quantization_config` and `peft_config`.

    Adapters of an earlier run, such as a warm start, are put on their model and trained further.
    """
    from peft import PeftModel
    from trl import get_quantization_config
    from trl.trainer.utils import create_model_from_path

    name = model_args.model_name_or_path
    quantization = get_quantization_config(model_args)
    base = adapters_base(name)
    if base is None:
        adapters = lora_config(model_args, args.freeze_vision_tower)
        return {"model": name, "quantization_config": quantization, "peft_config": adapters}
    options, args.model_init_kwargs = args.model_init_kwargs, None  # a trainer takes none for a model that is loaded
    model = create_model_from_path(base, quantization_config=quantization, **options)
    return {"model": PeftModel.from_pretrained(model, name, is_trainable=True)}


def command_line(script: str) -> str:
    """The command as it could be typed again."""
    return shlex.join(["accelerate", "launch", f"trainers/{Path(script).name}", *sys.argv[1:]])


def train_and_record(trainer: Any, info: RunInfo, recipe: Recipe, resume_from: str | None) -> None:
    """Trains, saves model, processor, recipe and report, and pushes them where the recipe says so."""
    args = trainer.args
    keep_token_out(args)
    info = replace(info, recipe=without_secrets(info.recipe), command=without_secrets(info.command))
    trainer.run_info = info
    trainer.add_callback(ReportCallback(trainer))
    shorten_output(trainer)
    if trainer.is_world_process_zero():
        store_recipe(args.output_dir, without_secrets(recipe.text))
    trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model(args.output_dir, _internal_call=True)  # the push comes below, once, with everything
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))
        trainer.create_model_card()
    say(f"model saved to {args.output_dir}, report in {Path(args.output_dir) / 'report.html'}")
    if args.push_to_hub:
        trainer.push_to_hub(commit_message=f"{info.method} after {trainer.state.global_step} steps")
        say(f"pushed to {trainer.hub_model_id}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def describe_rewards(specs: Sequence[Any], weights: Sequence[float] | None) -> list[str]:
    """A line for each reward: name, parameters, weight."""
    lines = []
    for number, spec in enumerate(specs):
        text = spec if isinstance(spec, str) else json.dumps(spec)
        lines.append(text if weights is None else f"{text} x {weights[number]}")
    return lines
