"""Gemma 3: images of one size with as many tokens each, every one of which sees all of its image; layers with a
sliding window; positions on one axis."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from models.families.base import Family, ImageTensors
from models.shared_prefix.layout import PrefixLayout, Segment


class Gemma3(Family):
    model_types: ClassVar = ("gemma3",)
    layer_kinds: ClassVar = ("full_attention", "sliding_attention")

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


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """What a mask lets be seen, as bool; `eager` has numbers to add."""
    return mask if mask.dtype == torch.bool else mask == 0
