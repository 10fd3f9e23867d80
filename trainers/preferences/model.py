"""The reward model that learns: loaded or made as the settings say, and the adapters that it gets."""

import re
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig
from torch import nn
from trl import get_quantization_config

from models.hub_revisions import hub_options
from models.reward.config import read_config
from models.reward.load import adapted_backbone, from_backbone, reward_model_kind, reward_model_of
from models.reward.model import HEAD
from trainers.setup.adapter_targets import check_adapter_targets
from trainers.setup.model import (
    ALL_LINEAR,
    base_of_adapters,
    hub_arguments,
    lora_config,
    model_init_kwargs,
    put_adapters,
)
from trainers.setup.recipes import RecipeError


def load_reward_policy(name: str, args: Any, options: Mapping[str, Any], quantization: Any = None) -> nn.Module:
    """The reward model of a folder or Hub id: a new head on a backbone, whose first weights follow `args.seed`; or a
    reward model or its adapters to train on.

    Args:
        args: a `RewardConfig`; their `model_init_kwargs` are taken out: they may hold what cannot be saved.
        options: of `from_pretrained`.
        quantization: configuration of a backbone that is loaded quantised, on the device that trains it.

    Raises:
        OSError, ValueError: it cannot be loaded.
    """
    args.model_init_kwargs = None
    torch.manual_seed(args.seed)
    hub, settings, options = hub_options(options), args.model_settings(), dict(options)
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": PartialState().device}}
    base = base_of_adapters(name, hub)
    if base is None:
        return from_backbone(name, settings, **options)
    model = adapted_backbone(base, read_config(name, hub), settings, **options)
    return put_adapters(model, name, hub.get("revision"), base)


def with_head(config: PeftConfig) -> PeftConfig:
    """The adapters as a reward model needs them: of the backbone alone, by default of all its linear layers, with the
    head trained in full and saved beside them."""
    config = copy(config)
    config.task_type = None  # PEFT would look for the head of a classifier
    config.modules_to_save = sorted({HEAD, *(config.modules_to_save or ())})
    if config.target_modules is None and not config.target_parameters:
        config.target_modules = ALL_LINEAR
    given = config.exclude_modules or []
    patterns = [given] if isinstance(given, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in given]
    config.exclude_modules = "|".join(f"(?:{pattern})" for pattern in (rf"{HEAD}\..*", *patterns))
    return config


def reward_adapters(model_args: Any, freeze_vision_tower: bool, revision: str | None = None) -> Any:
    """The recipe's adapters, or `None`.

    Args:
        revision: of the backbone.
    """
    config = lora_config(model_args, freeze_vision_tower, revision)
    return None if config is None else with_head(config)


def policy_and_adapters(args: Any, model_args: Any) -> tuple[nn.Module, PeftConfig | None]:
    """The model that a recipe names, and the adapters that it gets; none where it has some.

    Raises:
        RecipeError: it cannot be loaded.
    """
    name, hub = model_args.model_name_or_path, hub_arguments(args, model_args)
    options = model_init_kwargs(args, model_args)
    try:
        policy = load_reward_policy(name, args, options, get_quantization_config(model_args))
    except (OSError, ValueError) as error:
        raise RecipeError(f"model_name_or_path: '{name}' cannot be loaded: {error}") from error
    if hasattr(policy, "peft_config"):
        return policy, None
    return policy, reward_adapters(model_args, args.freeze_vision_tower, hub["revision"])


def check_reward_model(config: Any, args: Any, model_args: Any) -> None:
    """Checks that there are reward models of the kind of a model (`None`: out of reach), and the recipe's adapters.

    Raises:
        ModelError: there are none of its kind.
        RecipeError: the recipe puts adapters on what the model does not have.
    """
    if config is not None:
        reward_model_kind(config, model_args.model_name_or_path)
    if base_of_adapters(model_args.model_name_or_path, hub_arguments(args, model_args)) is None:
        adapters = reward_adapters(model_args, args.freeze_vision_tower)
        try:
            check_adapter_targets(adapters, config, lambda known: reward_model_of(known, args.model_settings()))
        except ValueError as error:
            raise error if isinstance(error, RecipeError) else RecipeError(f"model_name_or_path: {error}") from error
