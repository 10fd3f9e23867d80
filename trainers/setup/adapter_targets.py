"""Whether the modules that a recipe puts adapters on exist: found in the model's configuration, before any weight."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

from data.cli.suggestions import closest
from trainers.setup.model import ALL_LINEAR, base_of_adapters, hub_arguments, lora_config
from trainers.setup.recipes import RecipeError

ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention, Conv1D)
"""Modules that LoRA can be put on."""


def model_of(config: Any) -> nn.Module:
    """The model that a configuration is of, with a language head."""
    text_only = config.get_text_config() is config
    return (AutoModelForCausalLM if text_only else AutoModelForImageTextToText).from_config(config)


def without_weights(config: Any) -> nn.Module:
    """The model of a configuration, or under a reward model's, whose weights take no memory."""
    with torch.device("meta"):
        return model_of(config.backbone() if hasattr(config, "backbone") else config)


def check_adapters(config: Any, args: Any, model_args: Any) -> None:
    """Raises `RecipeError` if the recipe puts adapters on what the model (`None`: out of reach) does not have."""
    if base_of_adapters(model_args.model_name_or_path, hub_arguments(args, model_args)) is None:
        check_adapter_targets(lora_config(model_args, args.freeze_vision_tower), config)


def check_adapter_targets(
    adapters: LoraConfig | None, config: Any, make_model: Callable[[Any], nn.Module] = model_of
) -> None:
    """Checks names and patterns against the modules of the model, which is made without weights.

    Args:
        adapters: of the recipe, or `None` if it has none.
        config: of the model; `None` if it is out of reach, and nothing can be checked.
        make_model: called with `config`, on the meta device.

    Raises:
        RecipeError: one of them names nothing, or modules that cannot have adapters; says which there are.
    """
    if adapters is None or config is None:
        return
    with torch.device("meta"):
        model = make_model(config)
    for pattern in _patterns(adapters.target_modules):
        _check_target(pattern, adapters, model)
    names = [name for name, _ in model.named_modules() if name]
    for name in adapters.modules_to_save or ():
        _check_ending("lora_modules_to_save", name, names, model)
    for name in adapters.target_parameters or ():
        _check_ending("lora_target_parameters", name, [name for name, _ in model.named_parameters()], model)


def what_experts_get(config: Any, model_args: Any) -> list[str]:
    """What to know of the experts of a mixture: their weights are no linear layers, so that adapters and quantisation
    leave them out.

    Args:
        config: of the model; `None` if it is out of reach.
    """
    asked = model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit
    if config is None or not asked or not any("experts" in name for name in config.get_text_config().to_dict()):
        return []
    model = without_weights(config)
    sizes = {name: one.numel() for name, one in model.named_parameters() if ".experts." in name and one.dim() == 3}
    if not sizes:
        return []
    share = sum(sizes.values()) / sum(one.numel() for one in model.parameters())
    shown = f"the weights of experts ({share:.0%} of all)"
    endings = sorted({".".join(name.split(".")[-2:]) for name in sizes})
    notes = []
    if model_args.use_peft and not model_args.lora_target_parameters:
        notes.append(
            f"adapters of linear layers leave out {shown}; lora_target_parameters: [{', '.join(endings)}] puts some "
            "on them"
        )
    if model_args.load_in_4bit or model_args.load_in_8bit:
        notes.append(f"bitsandbytes quantises linear layers, and leaves {shown} as they are")
    return notes


def _patterns(targets: Any) -> list[str | set[str]]:
    """One pattern, or each of the names for itself."""
    if targets is None or targets == ALL_LINEAR:
        return []
    return [targets] if isinstance(targets, str) else [{name} for name in sorted(targets)]


def _check_target(pattern: str | set[str], adapters: LoraConfig, model: nn.Module) -> None:
    text = pattern if isinstance(pattern, str) else next(iter(pattern))
    shown = f"'{text}'"
    alone = replace(adapters, target_modules=pattern, target_parameters=None)
    try:
        found = {name: (check_target_module_exists(alone, name), module) for name, module in model.named_modules()}
    except re.error as error:
        raise RecipeError(f"lora_target_modules: {shown} is no regular expression: {error}") from error
    for name, (matches, module) in found.items():
        if matches and not isinstance(module, ADAPTABLE):
            whole = [key for key, _ in module.named_parameters(recurse=False)]
            ending = name.rpartition(".")[2]
            if whole and ending == "experts":
                raise RecipeError(
                    f"lora_target_modules: {shown} names '{name}', which is no layer; expected "
                    f"lora_target_parameters: [{', '.join(f'{ending}.{key}' for key in whole)}]"
                )
            raise RecipeError(
                f"lora_target_modules: {shown} names '{name}', a {type(module).__name__}, which takes no adapters; "
                f"{_expected(model)}"
            )
    if not any(matches for matches, _ in found.values()):
        left_out = replace(alone, exclude_modules=None, modules_to_save=None)
        excluded = any(check_target_module_exists(left_out, name) for name in found)
        what = "only modules that get no adapters here (frozen, or trained in full)" if excluded else "no module"
        hint = "" if excluded else closest(text, _endings(model))
        raise RecipeError(
            f"lora_target_modules: {shown} names {what} of {type(model).__name__}; {hint}{_expected(model)}"
        )


def _check_ending(key: str, ending: str, names: Sequence[str], model: nn.Module) -> None:
    """Raises `RecipeError` unless one of the names is `ending`, or ends in it."""
    if not any(f".{name}".endswith(f".{ending}") for name in names):
        of = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdecimal()})
        raise RecipeError(
            f"{key}: {ending!r} is no name in {type(model).__name__}; {closest(ending, of)}expected "
            f"the end of one, such as {names[0]} or {names[-1]}"
        )


def _endings(model: nn.Module) -> list[str]:
    """Last parts of the names of linear layers."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sorted({name.rpartition(".")[2] for name in linear if not name.rpartition(".")[2].isdecimal()})


def _expected(model: nn.Module) -> str:
    example = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return f"expected {ALL_LINEAR}, some of {', '.join(_endings(model))}, or one pattern of names such as {example}"
