"""InternVL: images as tiles of one size, each with as many tokens; positions on one axis, full attention."""

from typing import Any, ClassVar

import torch
from torch import nn

from models.families.base import ImageTensors, KnownFamily


class InternVL(KnownFamily):
    """The processor cuts an image into tiles, beside which stands a small picture of all of it if there are several.
    Pixels have a row for each tile, and nothing says how many an image has; each has features of its own."""

    model_types: ClassVar = ("internvl",)
    layer_kinds: ClassVar = ("full_attention",)

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """One tile."""
        vision = combined.config.vision_config
        pixels = torch.zeros(1, vision.num_channels, *vision.image_size, dtype=like.dtype, device=like.device)
        return {"pixel_values": pixels}

    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        return config.image_seq_length
