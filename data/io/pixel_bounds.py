"""Images resized for a model, as qwen-vl-utils does it, so that the processor's own resizing changes nothing."""

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from data.errors import UserError
from data.io.images import MAX_ASPECT_RATIO, ImageSource, checked_file, describe_source, image_size, open_image

CACHE_BYTES = 2**28
"""Resized pictures that a process keeps, in bytes of their pixels; those not used for longest go first."""


class BoundsError(UserError, ValueError):
    """Bounds that no image can keep."""


class ImageReader(ABC):
    """How images are read for a model.

    Attributes:
        tokens_around: of each image in a conversation, beside those that `tokens` counts.
    """

    tokens_around: ClassVar[int] = 0

    def open(self, source: ImageSource) -> Image.Image:
        """Reads an image as the model is given it. Those of files are kept: a group's completions all ask for the
        same ones.

        Raises:
            ImageError: see `data.io.images.open_image`.
        """
        if not isinstance(source, str | os.PathLike):
            return self._resized(open_image(source))
        path = checked_file(source, describe_source(source))
        found = path.stat()
        key = (os.fspath(path), found.st_mtime_ns, found.st_size, self)
        image = _kept.get(key)
        if image is None:
            image = self._resized(open_image(source))
            _kept.keep(key, image)
        return image

    @abstractmethod
    def tokens(self, source: ImageSource, others: int = 0) -> int:
        """Visual tokens of an image.

        Args:
            others: images of the same prompt, beside which some families give an image fewer.
        """

    def _resized(self, image: Image.Image) -> Image.Image:
        return image


@dataclass(frozen=True)
class PixelBounds(ImageReader):
    """Images are resized.

    Attributes:
        minimum, maximum: of width * height after resizing, in pixels; sides become multiples of 2 * `patch_size`.
        patch_size: side of a patch of the vision tower, in pixels (14 for every published Qwen2-VL).
    """

    minimum: int
    maximum: int
    patch_size: int = 14
    tokens_around: ClassVar[int] = 2

    def tokens(self, source: ImageSource, others: int = 0) -> int:
        """Visual tokens of an image, each of 2 x 2 patches.

        Raises:
            ImageError: see `data.io.images.image_size`.
        """
        width, height = self.size(image_size(source))
        return width * height // (2 * self.patch_size) ** 2

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels that an image of `size` is resized to.

        qwen-vl-utils rounds the short side of a very long strip to 0, or makes its ratio one that Qwen2-VL refuses;
        such a strip is squeezed to one row of visual tokens, as many as the bounds allow.
        """
        from qwen_vl_utils import smart_resize

        factor = 2 * self.patch_size
        height, width = smart_resize(size[1], size[0], factor, self.minimum, self.maximum)
        longest = max(1, min(self.maximum // factor**2, MAX_ASPECT_RATIO))  # tokens in a row
        if max(width, height) <= longest * min(width, height):
            return width, height
        return (longest * factor, factor) if width > height else (factor, longest * factor)

    def _resized(self, image: Image.Image) -> Image.Image:
        # The step that qwen_vl_utils.fetch_image ends with; calling it would round the size of a strip once more.
        return image.resize(self.size(image.size))


class ResizedImages:
    """Pictures by path and size, the last used ones, up to a number of bytes; safe to use from several threads."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._images: OrderedDict[tuple, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple) -> Image.Image | None:
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def keep(self, key: tuple, image: Image.Image) -> None:
        """Keeps an RGB picture, and lets go of others; one that is larger than all that may be kept is not kept."""
        with self._lock:
            if key in self._images or _bytes_of(image) > self.max_bytes:
                return
            self._images[key] = image
            self.used_bytes += _bytes_of(image)
            while self.used_bytes > self.max_bytes:
                self.used_bytes -= _bytes_of(self._images.popitem(last=False)[1])


def _bytes_of(image: Image.Image) -> int:
    return image.width * image.height * 4  # Pillow stores RGB in four bytes


_kept = ResizedImages(CACHE_BYTES)
