"""What a Qwen2-VL's vision tower makes of images: each picture is encoded once, however often it is shown."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from data.images import ImageSource, image_size, open_image
from models.vision_hooks import vision_tower


def _digest(source: ImageSource) -> str:
    """A hash of the picture as it is given: the file's bytes, or the pixels of a PIL image."""
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, str | Path):
        content = Path(source).read_bytes()
    elif isinstance(source, bytes):
        content = source
    else:
        content = f"{source.mode} {source.size} ".encode() + source.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class ImageFeatures:
    """Merged features of images, on the model's device, under keys made of the images' contents.

    Args:
        model: a Qwen2-VL or Qwen2.5-VL; its weights must not change.
        processor: its processor.
        cache_bytes: features are kept up to this size; those not used for longest go first.

    Pictures go through the vision tower one by one, so that the features of one never depend, not even in their last
    bit, on which others happened to be encoded with it. `encoded` counts them.
    """

    def __init__(self, model, processor, cache_bytes: int):
        self._tower = vision_tower(model)
        self._processor = processor.image_processor
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._keys_of_paths: dict[str, str] = {}
        self._sources: dict[str, ImageSource] = {}
        self._grids: dict[str, tuple[int, int]] = {}
        self.encoded = 0

    def key(self, source: ImageSource) -> str:
        """The name under which a picture's features are kept; pictures with the same content share it.

        Raises:
            ImageError: an image that cannot be read.
        """
        if isinstance(source, str) and source in self._keys_of_paths:
            return self._keys_of_paths[source]
        if not isinstance(source, str | Path | dict):
            source = open_image(source)
        try:
            key = _digest(source)
        except OSError:
            open_image(source)  # says what is wrong with it
            raise
        if isinstance(source, str):
            self._keys_of_paths[source] = key
        if key not in self._sources:
            self._sources[key] = source
            self._grids[key] = self._expected_grid(source)
        return key

    def _expected_grid(self, source: ImageSource) -> tuple[int, int]:
        processor = self._processor
        width, height = image_size(source) if isinstance(source, str | Path) else open_image(source).size
        side = processor.patch_size * processor.merge_size
        size = processor.size
        height, width = smart_resize(height, width, side, size["shortest_edge"], size["longest_edge"])
        return height // side, width // side

    def grid(self, key: str) -> tuple[int, int]:
        """(rows, columns) of a picture's visual tokens, without encoding it."""
        return self._grids[key]

    def __call__(self, keys: Iterable[str]) -> torch.Tensor:
        """Features of pictures one after the other: (their visual tokens together, hidden size)."""
        keys = list(keys)
        found = {key: self._kept(key) for key in dict.fromkeys(keys)}
        return torch.cat([found[key] for key in keys])

    def _kept(self, key: str) -> torch.Tensor:
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        features = self._encode(key)
        self._features[key] = features
        self._used_bytes += features.nbytes
        while self._used_bytes > self._cache_bytes and len(self._features) > 1:
            self._used_bytes -= self._features.popitem(last=False)[1].nbytes
        return features

    @torch.inference_mode()
    def _encode(self, key: str) -> torch.Tensor:
        inputs = self._processor(images=[open_image(self._sources[key])], return_tensors="pt")
        grid = inputs["image_grid_thw"]
        merge = self._processor.merge_size
        if (int(grid[0, 1]) // merge, int(grid[0, 2]) // merge) != self._grids[key]:
            raise RuntimeError(f"the image processor made a grid of {grid.tolist()}, expected {self._grids[key]}")
        device, dtype = self._tower.device, self._tower.dtype
        output = self._tower(inputs["pixel_values"].to(device, dtype), grid_thw=grid.to(device))
        self.encoded += 1
        return getattr(output, "pooler_output", output)
