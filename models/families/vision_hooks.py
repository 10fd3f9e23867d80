"""Hooks that let batches with and without images mix, within a process and between processes.

A micro-batch without images, cut from a batch with some, arrives with zero rows of pixels (or rows of zeros), which
the vision tower cannot take: they are removed.

DeepSpeed and DDP expect all processes to use the same parameters. When one process's batch has images and another's
has none, gradient buckets (ZeRO-2) or parameter gathers (ZeRO-3) no longer match, and training hangs. A process
without images therefore encodes one blank image and adds nothing of it: its gradients are exactly zero.
"""

from collections.abc import Callable
from functools import partial, wraps
from inspect import getclosurevars, signature
from types import MethodType
from typing import Any

import torch
from torch import nn

from models.families.base import LANGUAGE_MODELS, TOWERS, Family, feature_tensors
from models.families.registry import combined_module, family_of


def vision_language_model(model: nn.Module) -> nn.Module:
    """The module whose forward takes both pixels and tokens."""
    found = combined_module(model)
    if found is None:
        expected = f"one of {', '.join(TOWERS)} beside one of {', '.join(LANGUAGE_MODELS)}"
        raise ValueError(f"{type(model).__name__} has no vision tower: expected a module with {expected}")
    return found


def has_vision_tower(model: nn.Module) -> bool:
    """Whether it is a vision-language model, maybe inside PEFT and other wrappers."""
    return combined_module(model) is not None


def vision_tower(model: nn.Module) -> nn.Module:
    """The vision tower of a model, also inside PEFT and other wrappers."""
    combined = vision_language_model(model)
    return family_of(combined.config).tower(combined)


CACHES = ("cache", "past_key_values")
"""What a forward calls its cache: the first since transformers 5.24."""


def given_cache(kwargs: dict[str, Any]) -> Any:
    """The cache among a forward's arguments."""
    return next((kwargs[name] for name in CACHES if name in kwargs), None)


def of_prompts(function: Callable) -> Callable:
    """Marks a hook, or what stands in a forward's place, that does nothing for tokens behind a prompt."""
    function.of_prompts = True  # type: ignore[attr-defined]
    return function


def changes_new_tokens(module: nn.Module) -> bool:
    """Whether something stands around a module's forward, or in its place, that may do more."""
    around: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    forward = _beneath_fused_head(vars(module).get("forward"))
    if forward not in (None, *_with_wrapped(type(module).forward)):
        around.append(forward)
    return module._compiled_call_impl is not None or not all(getattr(one, "of_prompts", False) for one in around)


def _beneath_fused_head(forward: Any) -> Any:
    """The function in a forward's place; beneath TRL's, which is another one only where it is asked for no logits."""
    function = getattr(forward, "__func__", forward)
    if getattr(function, "__globals__", {}).get("__name__") != "trl.trainer.utils":
        return function
    return _beneath_fused_head(getclosurevars(function).nonlocals["original_forward"])


def _with_wrapped(function: Any) -> list[Any]:
    """A function and what it decorates: accelerate may put any of these back in a forward's place."""
    found = [function]
    while hasattr(found[-1], "__wrapped__"):
        found.append(found[-1].__wrapped__)
    return found


@of_prompts
def _without_empty_images(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    pixels = kwargs.get("pixel_values")
    if pixels is None or not family_of(module.config).show_nothing(pixels):
        return None
    of_images = {name: None for name in kwargs if name.startswith(("pixel_", "image_"))}
    return args, {**kwargs, **of_images}


def keeps_towers_busy(model: nn.Module) -> bool:
    """Whether `install_vision_hooks` lets a process without images use the vision tower all the same."""
    combined = vision_language_model(model)
    embeddings = combined.get_input_embeddings().weight
    return family_of(combined.config).blank_image(combined, embeddings) is not None


def nothing_of_a_blank_image(combined: nn.Module, like: torch.Tensor) -> torch.Tensor | float:
    """0, computed by all parameters that an image takes part with."""
    blank = family_of(combined.config).blank_image(combined, like)
    if blank is None:
        return 0.0
    features = combined.get_image_features(**blank, return_dict=True)
    return 0.0 * sum(one.sum().to(like.dtype) for one in feature_tensors(features))


def _keep_busy(combined: nn.Module) -> list[Any]:
    state = {"idle": False}
    language_model = family_of(combined.config).language_model(combined)

    @of_prompts
    def note_images(module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = given_cache(kwargs)
        decoding = cache is not None and cache.get_seq_length() > 0
        encoded = kwargs.get("mm_encoder_outputs")  # generate() encodes images before the first forward
        state["idle"] = kwargs.get("pixel_values") is None and not encoded and not decoding

    @of_prompts
    def add_nothing(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        embeds = kwargs.get("inputs_embeds")
        if not state["idle"] or embeds is None:
            return None
        return args, {**kwargs, "inputs_embeds": embeds + nothing_of_a_blank_image(combined, embeds)}

    # Before hooks that DeepSpeed has put on the language model: ZeRO-3 wants one order of modules on all processes.
    return [
        combined.register_forward_pre_hook(note_images, with_kwargs=True),
        language_model.register_forward_pre_hook(add_nothing, with_kwargs=True, prepend=True),
    ]


@of_prompts
def _note_images(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    if "image_index" not in kwargs:
        return None
    index = module.image_index = kwargs["image_index"]
    given = {name: value for name, value in kwargs.items() if name != "image_index"}
    module.image_grids = given.get("image_grid_thw")
    if module.image_grids is not None:
        given["image_grid_thw"] = module.image_grids[index]  # positions are those of all places
    return args, given


def _of_shared_images(encode: Callable) -> Callable:
    """A `get_image_features` that gives the features of each place, with the signature that `generate` looks up."""

    names = list(signature(encode).parameters)[1:]  # without the module

    @wraps(encode)
    def features_of_places(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        index, module.image_index = module.image_index, None  # first: it must not outlive a failure
        given = dict(zip(names, args, strict=False)) | kwargs
        if index is not None and module.image_grids is not None:
            given["image_grid_thw"] = module.image_grids
        family = family_of(module.config)
        features = family.encode(partial(encode, module), **given)
        if index is not None:
            family.choose_images(features, index.tolist())
        return features

    return features_of_places


def has_own_encoding(model: nn.Module) -> bool:
    """Whether the family changes how images are encoded, which `share_images` sees to."""
    return type(family_of(vision_language_model(model).config)).encode is not Family.encode


def share_images(model: nn.Module) -> None:
    """Lets a model take `image_index` (places,): which of the images stands at each place of its input.

    Each image is then encoded once, also where several prompts show it, and where the forward does it anyway: ZeRO-3
    wants one order of modules on all processes.
    """
    combined = vision_language_model(model)
    if not hasattr(combined, "image_index"):
        combined.image_index = combined.image_grids = None
        combined.get_image_features = MethodType(_of_shared_images(type(combined).get_image_features), combined)
        combined.register_forward_pre_hook(_note_images, with_kwargs=True)


def install_vision_hooks(model: nn.Module, distributed: bool) -> list[Any]:
    """Installs the hooks on a vision-language model.

    Args:
        distributed: also keep the vision tower busy where a process has no images.

    Returns:
        Handles whose `remove()` undoes it.
    """
    combined = vision_language_model(model)
    if has_own_encoding(combined):
        share_images(combined)
    handles = [combined.register_forward_pre_hook(_without_empty_images, with_kwargs=True)]
    return handles + (_keep_busy(combined) if distributed else [])
