"""Qwen2-VL and Qwen2.5-VL: images of any size as patches in one long table, M-RoPE, full attention."""

from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import BoundsError, PixelBounds
from models.families.base import Family
from models.shared_prefix.layout import PrefixLayout


class QwenVL(Family):
    """
    Attributes:
        layer_kinds: of attention, in which continuations can be kept apart.
    """

    model_types: ClassVar = ("qwen2_vl", "qwen2_5_vl")
    patch_grids: ClassVar = True
    layer_kinds: ClassVar[tuple[str, ...]] = ("full_attention",)
    image_tokens: ClassVar = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")

    def reader(self, processor: Any) -> PixelBounds:
        """The bounds that the processor resizes images to."""
        size = processor.image_processor.size
        return PixelBounds(size["shortest_edge"], size["longest_edge"], processor.image_processor.patch_size)

    def set_bounds(self, processor: Any, low: int | None, high: int | None) -> None:
        size = dict(processor.image_processor.size)
        low = size["shortest_edge"] if low is None else low
        high = size["longest_edge"] if high is None else high
        if low > high:
            raise BoundsError(f"min_pixels ({low}) must not exceed max_pixels ({high})")
        processor.image_processor.size = {"shortest_edge": low, "longest_edge": high}

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """One token after merging."""
        config = combined.config.vision_config
        merge = config.spatial_merge_size
        channels = getattr(config, "in_channels", None) or config.in_chans
        width = channels * config.temporal_patch_size * config.patch_size**2
        pixels = torch.zeros(merge * merge, width, dtype=like.dtype, device=like.device)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, merge, merge]], device=like.device)}

    def reason_not_shared(self, combined: nn.Module) -> str | None:
        layers = getattr(combined.language_model.config, "layer_types", None) or self.layer_kinds
        return None if set(layers) <= set(self.layer_kinds) else "the model has layers with a sliding window"

    def positions(
        self, combined: nn.Module, ids: torch.Tensor, types: torch.Tensor, grids: torch.Tensor | None
    ) -> torch.Tensor:
        """(3, T), in time, height and width."""
        if grids is None:
            return torch.arange(len(ids)).expand(3, len(ids))
        return combined.get_rope_index(ids[None], mm_token_type_ids=types[None], image_grid_thw=grids)[0][:, 0]

    def masks(self, combined: nn.Module, layout: PrefixLayout, mask: Any) -> Any:
        return {"full_attention": mask}
