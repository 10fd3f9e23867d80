"""Idefics3 and SmolVLM: images as tiles, each with as many tokens, in one row of pixels for each prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from models.families.base import ImageTensors, KnownFamily


class Idefics(KnownFamily):
    """The processor cuts images into tiles. Pixels have a row for each prompt, filled up with tiles of zeros, which
    the model leaves out; `pixel_attention_mask` says which pixels of a tile are real."""

    model_types: ClassVar = ("idefics3", "smolvlm")
    image_inputs: ClassVar = ("pixel_values", "pixel_attention_mask")
    layer_kinds: ClassVar = ("full_attention",)

    def split(self, inputs: Mapping[str, Any]) -> list[ImageTensors]:
        """(channels, height, width) of pixels and (height, width) of their mask: the tiles that the model encodes."""
        tensors = {name: value.flatten(0, 1) for name, value in self.of_images(inputs).items()}
        if not tensors:
            return []
        real = (tensors["pixel_values"] != 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
        return [{name: value[tile] for name, value in tensors.items()} for tile in real]

    def join(self, images: Sequence[ImageTensors]) -> dict[str, torch.Tensor]:
        """A row for each tile, so that each has features of its own."""
        return {name: value.unsqueeze(1) for name, value in super().join(images).items()}

    def show_nothing(self, pixel_values: torch.Tensor) -> bool:
        return not pixel_values.any()

    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        vision = config.vision_config
        return (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2

    def images_of_rows(
        self, config: Any, images: Sequence[ImageTensors], tokens: Sequence[int], counts: Sequence[int] | None = None
    ) -> list[list[int]]:
        """By the tokens alone: trainers count rows of pixels here."""
        return super().images_of_rows(config, images, tokens)

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """One tile; not of zeros, which would be left out."""
        vision = combined.config.vision_config
        shape = (1, 1, vision.num_channels, vision.image_size, vision.image_size)
        return {"pixel_values": torch.ones(shape, dtype=like.dtype, device=like.device)}
