"""Gemma 4: images of up to `max_soft_tokens` tokens, each of which sees all of its image, but in layers with a sliding
window only; positions on one axis."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import BoundsError
from models.families.base import ImageTensors
from models.families.gemma3 import Gemma3

TOKENS = (70, 140, 280, 560, 1120)
"""Most tokens of an image, of which the processor allows these."""


class Gemma4(Gemma3):
    """Pixels have a row of patches for each image, filled up to as many as the largest may have; `image_position_ids`
    says where each patch stands, and -1 where there is none."""

    model_types: ClassVar = ("gemma4",)
    image_inputs: ClassVar = ("pixel_values", "image_position_ids")

    def set_bounds(self, processor: Any, low: int | None, high: int | None) -> None:
        """By the most tokens of an image, to nearly which each is resized: there is no lower bound."""
        if low is not None:
            raise BoundsError(
                f"min_pixels: {type(processor).__name__} resizes each image to nearly the most tokens, and takes no "
                "lower bound; leave it out"
            )
        images = processor.image_processor
        pixels = (images.patch_size * images.pooling_kernel_size) ** 2  # of a token
        fitting = [tokens for tokens in TOKENS if tokens * pixels <= high]
        if not fitting:
            raise BoundsError(
                f"max_pixels: expected at least {TOKENS[0] * pixels}, the {TOKENS[0]} tokens of {pixels} pixels that "
                f"{type(processor).__name__} allows at least, found {high}"
            )
        images.max_soft_tokens = fitting[-1]

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """One token after pooling."""
        vision = combined.config.vision_config
        side = vision.pooling_kernel_size
        pixels = torch.zeros(1, side**2, 3 * vision.patch_size**2, dtype=like.dtype, device=like.device)
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1).unsqueeze(0)
        return {"pixel_values": pixels, "image_position_ids": places.to(like.device)}

    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        real = (image["image_position_ids"] != -1).all(dim=-1)
        return int(real.sum()) // config.vision_config.pooling_kernel_size**2

    def mask_function(self) -> Callable[..., dict[str, torch.Tensor | None]]:
        from transformers import Gemma4ForConditionalGeneration

        return Gemma4ForConditionalGeneration.create_masks_for_generate
