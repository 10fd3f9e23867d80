"""Hooks that let batches with and without images mix, within a process and between processes.

A micro-batch without images, cut from a batch with some, arrives with zero rows of pixels, which the vision tower
cannot take: they are removed.

DeepSpeed and DDP expect all processes to use the same parameters. When one process's batch has images and another's
has none, gradient buckets (ZeRO-2) or parameter gathers (ZeRO-3) no longer match, and training hangs. A process
without images therefore encodes one blank image and adds nothing of it: its gradients are exactly zero.
"""

from typing import Any

import torch
from torch import nn


def vision_language_model(model: nn.Module) -> nn.Module:
    """The module whose forward takes both pixels and tokens (`Qwen2VLModel` and its relatives)."""
    found = _combined(model)
    if found is None:
        raise ValueError(
            f"{type(model).__name__} has no vision tower: expected a model with `visual` and `language_model`"
        )
    return found


def has_vision_tower(model: nn.Module) -> bool:
    """Whether it is a Qwen2-VL, maybe inside PEFT and other wrappers."""
    return _combined(model) is not None


def _combined(model: nn.Module) -> nn.Module | None:
    return next((one for one in model.modules() if hasattr(one, "visual") and hasattr(one, "language_model")), None)


def vision_tower(model: nn.Module) -> nn.Module:
    """The vision tower of a Qwen2-VL, also inside PEFT and other wrappers."""
    return vision_language_model(model).visual


def given_cache(kwargs: dict[str, Any]) -> Any:
    """The cache among a forward's arguments: `cache` since transformers 5.24, `past_key_values` before."""
    return kwargs.get("cache", kwargs.get("past_key_values"))


def _without_empty_images(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    pixels = kwargs.get("pixel_values")
    if pixels is None or len(pixels):
        return None
    return args, {**kwargs, "pixel_values": None, "image_grid_thw": None}


def blank_image(config, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and grid of the smallest image: one token after merging."""
    merge = config.spatial_merge_size
    channels = getattr(config, "in_channels", None) or config.in_chans
    width = channels * config.temporal_patch_size * config.patch_size**2
    pixels = torch.zeros(merge * merge, width, dtype=like.dtype, device=like.device)
    return pixels, torch.tensor([[1, merge, merge]], device=like.device)


def _keep_busy(combined: nn.Module) -> list[Any]:
    state = {"idle": False}

    def note_images(module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = given_cache(kwargs)
        decoding = cache is not None and cache.get_seq_length() > 0
        encoded = kwargs.get("mm_encoder_outputs")  # generate() encodes images before the first forward
        state["idle"] = kwargs.get("pixel_values") is None and not encoded and not decoding

    def add_nothing(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        embeds = kwargs.get("inputs_embeds")
        if not state["idle"] or embeds is None:
            return None
        pixels, grid = blank_image(combined.visual.config, embeds)
        features = combined.visual(pixels, grid_thw=grid)
        features = getattr(features, "pooler_output", features)
        return args, {**kwargs, "inputs_embeds": embeds + 0.0 * features.sum().to(embeds.dtype)}

    # Before hooks that DeepSpeed has put on the language model: ZeRO-3 wants one order of modules on all processes.
    return [
        combined.register_forward_pre_hook(note_images, with_kwargs=True),
        combined.language_model.register_forward_pre_hook(add_nothing, with_kwargs=True, prepend=True),
    ]


def _with_shared_images(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    index = kwargs.get("image_index")
    if index is None:
        return None
    kwargs = {name: value for name, value in kwargs.items() if name != "image_index"}
    pixels, grids = kwargs.pop("pixel_values"), kwargs.pop("image_grid_thw")
    # Before the images, as the module itself does it: ZeRO-3 wants one order of modules on all processes.
    kwargs["inputs_embeds"] = module.get_input_embeddings()(kwargs["input_ids"])
    features = module.get_image_features(pixels, grids, return_dict=True)
    features.pooler_output = tuple(features.pooler_output[number] for number in index.tolist())
    return args, {**kwargs, "mm_encoder_outputs": {"image": features}}


def share_images(model: nn.Module) -> None:
    """Lets a Qwen2-VL take `image_index` (places,): which of the images stands at each place of its input.

    Each image is then encoded once, also where several prompts show it. Its forward needs `position_ids` with it.
    """
    hooks = vision_language_model(model)._forward_pre_hooks
    number = next((number for number, hook in hooks.items() if hook is _with_shared_images), None)
    if number is None:
        vision_language_model(model).register_forward_pre_hook(_with_shared_images, with_kwargs=True)
    else:
        hooks.move_to_end(number)  # behind those that DeepSpeed may have added since, which note the order of modules


def install_vision_hooks(model: nn.Module, distributed: bool) -> list[Any]:
    """Installs the hooks on a Qwen2-VL.

    Args:
        distributed: also keep the vision tower busy where a process has no images.

    Returns:
        Handles whose `remove()` undoes it.
    """
    combined = vision_language_model(model)
    handles = [combined.register_forward_pre_hook(_without_empty_images, with_kwargs=True)]
    return handles + (_keep_busy(combined) if distributed else [])
