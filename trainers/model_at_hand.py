"""The model that a recipe names: what is known of it before it is loaded, and how a trainer is to load it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.known import PUBLISHED_MAX_PIXELS, PUBLISHED_MIN_PIXELS, PUBLISHED_PATCH_SIZE, known_config
from models.loading import PixelBounds, load_processor, pixel_bounds
from trainers.console import say
from trainers.recipes import DataArguments, RecipeError

ALL_LINEAR = "all-linear"
_NAME = re.compile(r"[\w.]+")
DEFAULT_REVISION = "main"
"""What `trl.ModelConfig.model_revision` is unless a recipe sets it."""


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


def init_kwargs(args: Any) -> dict[str, Any]:
    """The recipe's `model_init_kwargs`, which the command line gives as JSON."""
    given = getattr(args, "model_init_kwargs", None) or {}
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise RecipeError(f"model_init_kwargs: expected a mapping, found {given!r} ({error})") from error
    return given


def hub_arguments(args: Any, model_args: Any) -> dict[str, Any]:
    """What everything that is loaded of the recipe's model is asked for: one revision, and whether its code is run.

    Raises:
        RecipeError: `model_revision` and `model_init_kwargs` name two revisions.
    """
    given = init_kwargs(args)
    revision = given.get("revision", model_args.model_revision)
    if model_args.model_revision not in (DEFAULT_REVISION, revision):
        raise RecipeError(
            f"model_revision: '{model_args.model_revision}', but model_init_kwargs has the revision '{revision}'; set "
            "one of them"
        )
    trusted = given.get("trust_remote_code", getattr(args, "trust_remote_code", False))
    return {"revision": revision, "trust_remote_code": trusted}


def inspect_model(
    name: str, arguments: DataArguments, required: bool, hub: dict[str, Any] | None = None
) -> ModelAtHand:
    """Configuration and processor of a model, which may be out of reach when a recipe is only validated.

    Args:
        required: an unreachable model is an error.
        hub: of `hub_arguments`.

    Raises:
        RecipeError: the model cannot be loaded, or its pixel bounds are inconsistent.
    """
    from transformers import AutoConfig

    base, hub = adapters_base(name), hub or {}
    try:
        config = AutoConfig.from_pretrained(base or name, **hub)
        of_base = base is not None and not any(Path(name).glob("*processor_config.json"))
        processor = load_processor(base if of_base else name, arguments.min_pixels, arguments.max_pixels, **hub)
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


def model_init_kwargs(args: Any, model_args: Any) -> dict[str, Any]:
    """Keyword arguments with which policy and reference are loaded."""
    chosen = {"attn_implementation": model_args.attn_implementation, "dtype": model_args.dtype}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    return chosen | init_kwargs(args) | hub_arguments(args, model_args)


def lora_config(model_args: Any, freeze_vision_tower: bool) -> Any:
    """The recipe's adapters, or `None`; by default of all linear layers, and a frozen vision tower gets none."""
    from trl import get_peft_config

    config = get_peft_config(model_args)
    if config is not None and config.target_modules is None and not config.target_parameters:
        config.target_modules = ALL_LINEAR
    if config is not None and isinstance(config.target_modules, str) and _NAME.fullmatch(config.target_modules):
        config.target_modules = {config.target_modules}  # `trl.ModelConfig` makes a pattern of a list with one name
    if config is not None and freeze_vision_tower:
        config.exclude_modules = r".*\bvisual\..*"
    return config


def check_adapters(config: Any, args: Any, model_args: Any) -> None:
    """Raises `RecipeError` if the recipe puts adapters on what the model (`None`: out of reach) does not have."""
    from trainers.adapter_targets import check_adapter_targets

    if adapters_base(model_args.model_name_or_path) is None:
        check_adapter_targets(lora_config(model_args, args.freeze_vision_tower), config)


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


def load_policy(args: Any, model_args: Any) -> Any:
    """The model that a recipe names, with the adapters that it asks for, for a trainer that loads none itself."""
    from accelerate import PartialState
    from peft import PeftModel, get_peft_model
    from trl.trainer.utils import create_model_from_path

    arguments = policy_arguments(args, model_args)
    model, adapters = arguments["model"], arguments.get("peft_config")
    if isinstance(model, str):
        quantization = arguments["quantization_config"]
        state = PartialState()
        quantised_on_gpu = quantization is not None and state.device.type != "cpu"
        options = {
            "device_map": {"": state.local_process_index} if quantised_on_gpu else None
        } | args.model_init_kwargs
        model = create_model_from_path(model, quantization_config=quantization, **options)
    if adapters is not None:
        model = get_peft_model(model, adapters)
    if isinstance(model, PeftModel) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    args.model_init_kwargs = None  # they hold types that a saved configuration cannot
    return model
