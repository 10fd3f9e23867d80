"""Gemma 3 and 4: each token of an image sees all of its image, and some layers have a sliding window; positions on one
axis."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import BoundsError
from models.families.base import ImageTensors, KnownFamily
from models.shared_prefix.layout import PrefixLayout, Segment

TOKENS = (70, 140, 280, 560, 1120)
"""Most tokens of an image, of which the processor of Gemma 4 allows these."""


class Gemma3(KnownFamily):
    """Images have one size, and as many tokens each."""

    model_types: ClassVar = ("gemma3",)
    layer_kinds: ClassVar = ("full_attention", "sliding_attention")
    images_anywhere: ClassVar = False

    # -- the model ---------------------------------------------------------------------------------------------------

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
        vision = combined.config.vision_config
        shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        return {"pixel_values": torch.zeros(shape, dtype=like.dtype, device=like.device)}

    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        return config.mm_tokens_per_image

    # -- shared prompts ----------------------------------------------------------------------------------------------

    def reason_not_shared(self, combined: nn.Module) -> str | None:
        if combined.config.get_text_config().use_bidirectional_attention in (True, "all"):
            return "every token sees those behind it (use_bidirectional_attention)"
        return super().reason_not_shared(combined)

    def mask_function(self) -> Callable[..., dict[str, torch.Tensor | None]]:
        """The family's own: (config, embeddings, padding, cache, positions, token types) -> masks by kind of layer."""
        from transformers import Gemma3ForConditionalGeneration

        return Gemma3ForConditionalGeneration.create_masks_for_generate

    def masks(
        self, combined: nn.Module, layout: PrefixLayout, make: Callable[..., Any], types: torch.Tensor
    ) -> dict[str, Any]:
        """For each kind of layer, what the family's own masks say of one row of each segment."""
        of_segments = [self._tables(combined, segment, types.flatten()) for segment in layout.segments]
        return {kind: make([tables[kind] for tables in of_segments]) for kind in of_segments[0]}

    def step_masks(self, text: Any, make: Callable[[int | None], Any]) -> Any:
        return {"full_attention": make(None), "sliding_attention": make(text.sliding_window)}

    def _tables(self, combined: nn.Module, segment: Segment, types: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Bool (tokens, tokens), what each token of the row [beginning | longest continuation] sees, by kind of layer;
        `None` where that is all before it.

        Args:
            types: of the packed sequence's tokens; continuations have no images.
        """
        row = types.new_zeros(1, segment.prefix + max(segment.continuations))
        row[0, : segment.prefix] = types[segment.start : segment.start + segment.prefix]
        weight = combined.get_input_embeddings().weight
        embeddings = torch.empty(*row.shape, 1, dtype=weight.dtype, device=row.device)
        masks = self.mask_function()(combined.config, embeddings, None, None, None, row)
        return {kind: None if mask is None else _seen(mask[0, 0]) for kind, mask in masks.items()}


class Gemma4(Gemma3):
    """Images have up to `max_soft_tokens` tokens, which see those behind them in layers with a sliding window only.
    Pixels have a row of patches for each image, filled up to as many as the largest may have; `image_position_ids`
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


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """What a mask lets be seen, as bool; `eager` has numbers to add."""
    return mask if mask.dtype == torch.bool else mask == 0
