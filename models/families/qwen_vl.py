"""Qwen2-VL and Qwen2.5-VL: images of any size as patches in one long table, M-RoPE, full attention."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from data.io.pixel_bounds import BoundsError, PixelBounds
from models.families.base import ImageTensors, KnownFamily, PromptPieces
from models.shared_prefix.layout import PrefixLayout


class QwenVL(KnownFamily, PromptPieces):
    """The processor makes one long table of all images' patches, and says how each image's are arranged."""

    model_types: ClassVar = ("qwen2_vl", "qwen2_5_vl")
    image_inputs: ClassVar = ("pixel_values", "image_grid_thw")
    layer_kinds: ClassVar = ("full_attention",)
    patch_size: ClassVar = 14
    image_block: ClassVar = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    image_tokens: ClassVar = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")

    def reader(self, processor: Any, most_pixels: int | None = None) -> PixelBounds:
        """The bounds that the processor resizes images to; or no lower one below `most_pixels`."""
        size = processor.image_processor.size
        low, high = (size["shortest_edge"], size["longest_edge"]) if most_pixels is None else (0, most_pixels)
        return PixelBounds(low, high, processor.image_processor.patch_size)

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

    def split(self, inputs: Mapping[str, Any]) -> list[ImageTensors]:
        """(patches, width) of pixels and (3,) of the grid: patches in time, height and width."""
        tensors = self.of_images(inputs)
        if not tensors:
            return []
        grids = tensors["image_grid_thw"]
        tables = tensors["pixel_values"].split(grids.prod(dim=1).tolist())
        return [{"pixel_values": table, "image_grid_thw": grid} for table, grid in zip(tables, grids, strict=True)]

    def join(self, images: Sequence[ImageTensors]) -> dict[str, torch.Tensor]:
        if not images:
            return {}
        pixels = torch.cat([image["pixel_values"] for image in images])
        return {"pixel_values": pixels, "image_grid_thw": torch.stack([image["image_grid_thw"] for image in images])}

    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        return len(image["pixel_values"]) // config.vision_config.spatial_merge_size**2

    def positions(self, combined: nn.Module, ids: torch.Tensor, images: Sequence[ImageTensors]) -> torch.Tensor:
        """(3, T), in time, height and width."""
        if not images:
            return torch.arange(len(ids)).expand(3, len(ids))
        types = self.token_types(combined.config, ids)[None]
        grids = torch.stack([image["image_grid_thw"] for image in images]).to(ids.device)
        return combined.get_rope_index(ids[None], mm_token_type_ids=types, image_grid_thw=grids)[0][:, 0]

    def masks(self, combined: nn.Module, layout: PrefixLayout, make: Callable[..., Any], types: torch.Tensor) -> Any:
        return {"full_attention": make()}

    def step_masks(self, text: Any, make: Callable[[int | None], Any]) -> Any:
        return {"full_attention": make(None)}

    def reason_no_pieces(self, combined: nn.Module) -> str | None:
        others = sorted(_layers(combined) - {"full_attention"})
        return f"expected full attention in every layer, found {', '.join(others)}" if others else None

    def token_grid(self, image_processor: Any, size: tuple[int, int]) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        side, bounds = image_processor.patch_size * image_processor.merge_size, image_processor.size
        height, width = smart_resize(size[1], size[0], side, bounds["shortest_edge"], bounds["longest_edge"])
        return height // side, width // side

    def features_of_pictures(
        self, combined: nn.Module, pictures: Sequence[dict[str, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """They are encoded together."""
        names = ("pixel_values", "image_grid_thw")
        joined = {name: torch.cat([picture[name] for picture in pictures]) for name in names}
        features = combined.get_image_features(**joined, return_dict=True)
        layers = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
        return [torch.stack(of_picture, dim=1) for of_picture in zip(*layers, strict=True)]


def _layers(combined: nn.Module) -> set[str]:
    """The kinds of layers that a language model has."""
    return set(getattr(combined.language_model.config, "layer_types", None) or ("full_attention",))
