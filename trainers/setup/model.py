"""The model that a recipe names: what is known of it before it is loaded, and how a trainer is to load it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.io.pixel_bounds import BoundsError, ImageReader
from models.errors import ModelError
from models.families.base import TOWERS, backbone_kind
from models.families.loading import image_reader, load_processor, without_router_losses
from models.families.published import published_config, published_reader
from models.hub_revisions import AdapterBase, adapter_base, find_file, hub_options, model_class
from models.zero3 import loading_transposed
from trainers.setup.recipes import RecipeError

ALL_LINEAR = "all-linear"
_NAME = re.compile(r"[\w.]+")
DEFAULT_REVISION = "main"
"""What `trl.ModelConfig.model_revision` is unless a recipe sets it."""


@dataclass(frozen=True)
class ModelInfo:
    """What could be found out about a model before loading it; both are `None` if neither folder nor Hub has it."""

    config: Any
    processor: Any
    bounds: ImageReader


def init_kwargs(args: Any) -> dict[str, Any]:
    """The recipe's `model_init_kwargs`, which the command line gives as JSON."""
    given = getattr(args, "model_init_kwargs", None) or {}
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise RecipeError(f"model_init_kwargs: expected a mapping, found {given!r} ({error})") from error
    return given


def hub_arguments(args: Any, model_args: Any) -> dict[str, Any]:
    """What everything that is loaded of the recipe's model is asked for (`models.hub_revisions`): one revision, and
    whether its code is run.

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


def reference_hub(args: Any, model_args: Any) -> dict[str, Any]:
    """What the recipe's `reference_model` is asked for (`models.hub_revisions`)."""
    hub = hub_arguments(args, model_args)
    same = args.reference_model == model_args.model_name_or_path
    return hub | {"revision": args.reference_revision or (hub["revision"] if same else None)}


def base_of_adapters(name: str, hub: Mapping[str, Any]) -> AdapterBase | None:
    """The model under the adapters of a folder or Hub id; `None` if there are none.

    Its revision is what the adapters say. A recipe's revision is that of the adapters' own repository; a folder has
    none, so beside one it may say what the adapters leave open.

    Raises:
        RecipeError: adapters that name no base, or a folder of some that were trained on another revision than the
            recipe's.
    """
    asked = hub.get("revision")
    try:
        base = adapter_base(name, asked)
    except ModelError as error:
        raise error.at("model_name_or_path") from error
    if base is None or not Path(name).is_dir() or asked in (None, DEFAULT_REVISION, base.revision):
        return base
    if base.revision is not None:
        raise RecipeError(
            f"{name}: the adapters were trained on revision '{base.revision}' of {base.name}, the recipe asks for "
            f"'{asked}': leave the revision out"
        )
    return AdapterBase(base.name, asked)


def inspect_model(name: str, args: Any, required: bool, hub: dict[str, Any] | None = None) -> ModelInfo:
    """Configuration and processor of a model, which may be out of reach when a recipe is only validated.

    Args:
        args: with `min_pixels` and `max_pixels`.
        required: an unreachable model is an error.
        hub: of `hub_arguments`.

    Raises:
        RecipeError: the model cannot be loaded, for another reason than that it is out of reach; or is of a kind that
            cannot be trained here.
        BoundsError: bounds that its processor cannot keep.
    """
    from models.reward.config import read_config

    hub = hub or {}
    base = base_of_adapters(name, hub)
    try:
        place, its_hub = (name, hub) if base is None else (base.name, {**hub, "revision": base.revision})
        config = read_config(place, its_hub)
        place, its_hub = place_of_processor(name, hub)
        processor = load_processor(place, args.min_pixels, args.max_pixels, **its_hub)
        _check_kind(name, config, processor)
        return ModelInfo(config, processor, image_reader(processor))
    except (BoundsError, RecipeError):
        raise
    except Exception as error:  # the Hub's client raises many kinds
        problem = error
    if required or not _is_out_of_reach(problem):
        raise RecipeError(f"model_name_or_path: '{name}' cannot be loaded: {problem}") from problem
    from trainers.run.console import say  # imports transformers, which most errors need not wait for

    say(f"note: {name} cannot be reached from here; token counts are upper bounds")
    return ModelInfo(published_config(name), None, published_reader(name, args.min_pixels, args.max_pixels))


def _check_kind(name: str, config: Any, processor: Any) -> None:
    """Raises `RecipeError` for a model that no class of transformers' for images and texts can load."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = backbone_kind(config)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not getattr(config, "auto_map", None):
        raise RecipeError(
            f"model_name_or_path: '{name}': model_type: expected that of a model which reads images and texts, found "
            f"'{kind}'"
        )
    if not hasattr(processor, "image_processor"):
        raise RecipeError(f"model_name_or_path: '{name}': expected a processor of images and texts, found a tokenizer")


def _is_out_of_reach(error: BaseException | None) -> bool:
    """Whether the Hub could not be asked, or did not give something. Libraries wrap such errors in their own."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while error is not None:
        if isinstance(error, HfHubHTTPError | LocalEntryNotFoundError | ConnectionError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def place_of_processor(name: str, hub: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where the processor of a model is, and what is asked of that place: adapters may leave it to their base."""
    base = base_of_adapters(name, hub)
    if base is None or _has_processor(name, hub):
        return name, dict(hub)
    return base.name, {**hub, "revision": base.revision}


def _has_processor(name: str, hub: Mapping[str, Any]) -> bool:
    """Whether adapters have a processor of their own beside them."""
    names = ("processor_config.json", "preprocessor_config.json")
    return any(find_file(name, file, hub.get("revision")) for file in names)


def model_init_kwargs(args: Any, model_args: Any) -> dict[str, Any]:
    """Keyword arguments with which policy and reference are loaded."""
    chosen = {"attn_implementation": model_args.attn_implementation, "dtype": model_args.dtype}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    return chosen | init_kwargs(args) | hub_arguments(args, model_args)


@contextmanager
def class_of_its_revision(model: Any, args: Any) -> Iterator[None]:
    """While a TRL trainer is set up, policy and reference get the class that the model has at its revision.

    TRL looks the class up on the main branch, but takes one that is among `args.model_init_kwargs`. Afterwards they
    are as before, since a class cannot be saved with the arguments.

    Args:
        model: a name, or a loaded model, whose reference is loaded by its name.
    """
    given, options = args.model_init_kwargs, init_kwargs(args)
    if "revision" in options:
        name = model if isinstance(model, str) else model.config.name_or_path
        hub = {"trust_remote_code": args.trust_remote_code} | hub_options(options)
        args.model_init_kwargs = options | {"architecture": model_class(name, hub)}
    try:
        with loading_transposed():
            yield
    finally:
        args.model_init_kwargs = given


def _load(name: str, quantization: Any, options: Mapping[str, Any]) -> Any:
    """The model of a folder or Hub id as TRL loads it, but of the class that it has at its revision."""
    from trl.trainer.utils import create_model_from_path

    chosen = model_class(name, hub_options(options))
    with loading_transposed():
        model = create_model_from_path(name, chosen, quantization_config=quantization, **options)
    return without_router_losses(model)


def lora_config(model_args: Any, freeze_vision_tower: bool, revision: str | None = None) -> Any:
    """The recipe's adapters, or `None`; by default of all linear layers, and a frozen vision tower gets none.

    Args:
        revision: of the model that gets them; stored with them, so that they are put on the same one again.
    """
    from trl import get_peft_config

    config = get_peft_config(model_args)
    if config is not None and config.target_modules is None and not config.target_parameters:
        config.target_modules = ALL_LINEAR
    if config is not None and isinstance(config.target_modules, str) and _NAME.fullmatch(config.target_modules):
        config.target_modules = {config.target_modules}  # `trl.ModelConfig` makes a pattern of a list with one name
    of_hub = not Path(str(model_args.model_name_or_path)).is_dir()
    if config is not None and of_hub and revision != DEFAULT_REVISION:
        config.revision = revision
    if config is not None and freeze_vision_tower:
        config.exclude_modules = rf".*\b({'|'.join(TOWERS)})\..*"
    return config


def policy_arguments(args: Any, model_args: Any) -> dict[str, Any]:
    """What a trainer takes as `model`, `quantization_config` and `peft_config`; `args` get how it loads the model.

    Adapters of an earlier run, such as a warm start, are put on their model and trained further.
    """
    from trl import get_quantization_config

    name, hub = model_args.model_name_or_path, hub_arguments(args, model_args)
    quantization = get_quantization_config(model_args)
    args.model_init_kwargs = model_init_kwargs(args, model_args)
    base = base_of_adapters(name, hub)
    if base is None:
        adapters = lora_config(model_args, args.freeze_vision_tower, hub["revision"])
        return {"model": name, "quantization_config": quantization, "peft_config": adapters}
    options, args.model_init_kwargs = args.model_init_kwargs, None  # a trainer takes none for a model that is loaded
    model = _load(base.name, quantization, {**options, "revision": base.revision})
    return {"model": put_adapters(model, name, hub["revision"], base)}


def put_adapters(model: Any, name: str, revision: str | None, base: AdapterBase) -> Any:
    """The base with its adapters, to be trained further; with them is stored which revision of the base they are for.

    Args:
        name, revision: of the adapters.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, name, is_trainable=True, revision=revision)
    for config in model.peft_config.values():
        config.revision = base.revision
    return model


def load_policy(args: Any, model_args: Any) -> Any:
    """The model that a recipe names, with the adapters that it asks for, for a trainer that loads none itself."""
    from trl import get_quantization_config

    name, hub = model_args.model_name_or_path, hub_arguments(args, model_args)
    adapters = lora_config(model_args, args.freeze_vision_tower, hub["revision"])
    return load_to_train(name, args, args.model_init_kwargs, get_quantization_config(model_args), adapters)


def load_to_train(
    name: str, args: Any, options: Mapping[str, Any], quantization: Any = None, adapters: Any = None
) -> Any:
    """The model of a folder or Hub id, for a trainer that loads none itself; adapters there are trained further.

    Args:
        args: of the trainer; their `model_init_kwargs` are taken out: they hold types that cannot be saved.
        options: of `from_pretrained`.
        adapters: PEFT configuration of new ones, where the model has none of its own.
    """
    from accelerate import PartialState
    from peft import PeftModel, get_peft_model

    base = base_of_adapters(name, options)
    if base is not None:
        model = _load(base.name, quantization, {**options, "revision": base.revision})
        model = put_adapters(model, name, options.get("revision"), base)
    else:
        state = PartialState()
        quantised_on_gpu = quantization is not None and state.device.type != "cpu"
        placed = {"device_map": {"": state.local_process_index} if quantised_on_gpu else None}
        model = _load(name, quantization, placed | dict(options))
        model = model if adapters is None else get_peft_model(model, adapters)
    if isinstance(model, PeftModel) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    args.model_init_kwargs = None
    return model
