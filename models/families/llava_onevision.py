"""LLaVA-OneVision: an image alone in its prompt as a small picture of all of it beside tiles, several as a small
picture each; positions on one axis, full attention."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from models.families.base import ImageTensors, KnownFamily


class LlavaOnevision(KnownFamily):
    """Pixels have a row of tiles for each image, filled up with zeros to as many as the largest has. The model must be
    told which images are their prompt's only ones; TRL does not do so, but the tiles do: of several there is one each.
    """

    model_types: ClassVar = ("llava_onevision",)
    image_inputs: ClassVar = ("pixel_values", "image_sizes")
    layer_kinds: ClassVar = ("full_attention",)
    found_inputs: ClassVar = ("batch_num_images",)

    def blank_image(self, combined: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """A small picture and a tile; not of zeros, which would be none."""
        side = combined.config.vision_config.image_size
        pixels = torch.ones(1, 2, 3, side, side, dtype=like.dtype, device=like.device)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]], device=like.device)}

    def split(self, inputs: Mapping[str, Any]) -> list[ImageTensors]:
        """(tiles, channels, height, width) of pixels and (2,) of the image's height and width. A picture alone and the
        same one among others are two images, whose features differ."""
        images = super().split(inputs)
        counts = tile_counts(inputs["pixel_values"]) if images else []
        return [
            {**image, "pixel_values": image["pixel_values"][:count]}
            for image, count in zip(images, counts, strict=True)
        ]

    def join(self, images: Sequence[ImageTensors]) -> dict[str, torch.Tensor]:
        most = max((len(image["pixel_values"]) for image in images), default=0)
        filled = []
        for image in images:
            tiles = image["pixel_values"]
            filled.append({**image, "pixel_values": F.pad(tiles, (0, 0) * 3 + (0, most - len(tiles)))})
        return super().join(filled)

    def visual_tokens(self, config: Any, image: ImageTensors) -> int:
        """By the model's own packing of features, of which no value is computed."""
        from transformers import LlavaOnevisionModel

        side = config.vision_config.image_size // config.vision_config.patch_size
        packed, _ = LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=config),
            [torch.empty(len(image["pixel_values"]), side**2, 1, device="meta")],
            [image["image_sizes"].tolist()],
            image_newline=torch.empty(1, device="meta"),
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
        return len(packed[0])

    def encode(self, encode: Callable[..., Any], **inputs: Any) -> Any:
        """Those that are alone in their prompt first, because the model takes numbers of images a prompt."""
        pixels = inputs["pixel_values"]
        alone = [count > 1 for count in tile_counts(pixels)]
        order = sorted(range(len(alone)), key=lambda image: not alone[image])
        others = len(alone) - sum(alone)
        # What is more than there are images, the model leaves out.
        prompts = [1] * sum(alone) + ([max(others, 2)] if others else [])
        sizes = inputs["image_sizes"][order]
        features = encode(
            **inputs | {"pixel_values": pixels[order], "image_sizes": sizes, "batch_num_images": prompts}
        )
        self.choose_images(features, sorted(range(len(order)), key=order.__getitem__))
        return features


def tile_counts(pixel_values: torch.Tensor) -> list[int]:
    """Of each image: those behind the last that is not of zeros fill up. No tile of a picture is of zeros, which stand
    for a colour between two of 256."""
    real = (pixel_values != 0).flatten(2).any(dim=2)  # (images, tiles)
    places = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (real * places).amax(dim=1).clamp(min=1).tolist()
