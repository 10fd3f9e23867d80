"""What a vision tower makes of images: each picture is encoded once, however often it is shown."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from data.io.images import ImageSource, image_size, open_image
from models.families.vision_hooks import vision_language_model
from rollouts.frozen_vlm.image_keys import ImageKeys
from rollouts.frozen_vlm.prompt_pieces import pieces_of

GROUP_IMAGES = 32
GROUP_PATCHES = 16_384
"""Of the pictures that are encoded together; 16 of 448x448 pixels."""


class ImageFeatures(ImageKeys):
    """Merged features of images, on the model's device, under keys made of the images' contents.

    Args:
        model: one whose prompts are put together from pieces; its weights must not change.
        processor: its processor.
        cache_bytes: features are kept up to this size; those not used for longest go first.

    Pictures go through the vision tower one by one, or in the groups that `prepare` has fixed: the features of one
    never depend, not even in their last bit, on which others happened to be needed with it. `encoded` counts pictures.
    """

    def __init__(self, model, processor, cache_bytes: int):
        super().__init__()
        self._combined: Any = vision_language_model(model)
        self._family = pieces_of(self._combined)
        self._processor = processor.image_processor
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._sources: dict[str, ImageSource] = {}
        self._grids: dict[str, tuple[int, int]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self.encoded = 0

    def prepare(self, sources: Iterable[ImageSource]) -> None:
        """Fixes which pictures are encoded together, which is quicker: neighbours among `sources`.

        The first that is needed has its whole group encoded.

        Raises:
            ImageError: an image that cannot be read.
        """
        keys = list(dict.fromkeys(self.key(source) for source in sources))
        group: list[str] = []
        patches = 0
        for key in keys:
            rows, columns = self._grids[key]
            size = rows * columns * self._processor.merge_size**2
            if group and (len(group) == GROUP_IMAGES or patches + size > GROUP_PATCHES):
                self._groups.update(dict.fromkeys(group, tuple(group)))
                group, patches = [], 0
            group.append(key)
            patches += size
        self._groups.update(dict.fromkeys(group, tuple(group)))

    def _meet(self, key: str, source: ImageSource) -> None:
        self._grids[key] = self._family.token_grid(self._processor, image_size(source))
        self._sources[key] = source

    def grid(self, key: str) -> tuple[int, int]:
        """(rows, columns) of a picture's visual tokens, without encoding it."""
        return self._grids[key]

    def __call__(self, keys: Iterable[str]) -> torch.Tensor:
        """Features of pictures one after the other, (their visual tokens together, width): the hidden size, and once
        more for each layer of the language model that gets features of its own."""
        keys = list(keys)
        found = {key: self._kept(key) for key in dict.fromkeys(keys)}
        return torch.cat([found[key] for key in keys])

    def _kept(self, key: str) -> torch.Tensor:
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        group = self._groups.get(key, (key,))
        encoded = dict(zip(group, self._encode(group), strict=True))
        for member, features in encoded.items():
            self._keep(member, features)
        return encoded[key]

    def _keep(self, key: str, features: torch.Tensor) -> None:
        if key in self._features:
            self._used_bytes -= self._features.pop(key).nbytes
        self._features[key] = features
        self._used_bytes += features.nbytes
        while self._used_bytes > self._cache_bytes and len(self._features) > 1:
            self._used_bytes -= self._features.popitem(last=False)[1].nbytes

    @torch.inference_mode()
    def _encode(self, keys: Sequence[str]) -> list[torch.Tensor]:
        images = [open_image(self._sources[key]) for key in keys]
        inputs = self._processor(images=images, return_tensors="pt")
        grids = inputs["image_grid_thw"]
        merge = self._processor.merge_size
        found = [(rows // merge, columns // merge) for _, rows, columns in grids.tolist()]
        expected = [self._grids[key] for key in keys]
        if found != expected:
            raise RuntimeError(f"the image processor made grids of {found} visual tokens, expected {expected}")
        pixels, grids = (inputs[name].to(self._combined.device) for name in ("pixel_values", "image_grid_thw"))
        features = self._combined.get_image_features(pixels, grids, return_dict=True)
        self.encoded += len(keys)
        layers = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
        return [torch.cat(of_image, dim=-1) for of_image in zip(*layers, strict=True)]  # each can be freed by itself
