"""Images as they are, for processors that resize them by rules of their own; their tokens are counted by rendering."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from data.io.images import ImageSource, image_size
from data.io.pixel_bounds import ImageReader

_OF_TOKENS = ("input_ids", "attention_mask")
_SHORT = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


@dataclass(frozen=True)
class ReadAsTheyAre(ImageReader):
    """The tokens of an image are those that a blank one of its size adds to a conversation, counted once a size, alone
    and beside another one.

    Attributes:
        processor: of the model; not needed where nothing is counted.
        most_pixels: width * height to which larger images are scaled down, in proportion.
    """

    processor: Any = field(compare=False)
    most_pixels: int | None = None
    _counted: dict[tuple[tuple[int, int], int], int] = field(default_factory=dict, compare=False, repr=False)

    def tokens(self, source: ImageSource, others: int = 0) -> int:
        """Tokens of an image with those around it.

        Raises:
            ImageError: see `data.io.images.image_size`.
        """
        size, count = self._size(image_size(source)), 1 + bool(others)
        if (size, count) not in self._counted:
            images = [Image.new("RGB", size)] * count
            self._counted[size, count] = (self._length(images) - self._length([])) // count
        return self._counted[size, count]

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after scaling down."""
        if self.most_pixels is None or size[0] * size[1] <= self.most_pixels:
            return size
        scale = (self.most_pixels / (size[0] * size[1])) ** 0.5
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))

    def _resized(self, image: Image.Image) -> Image.Image:
        size = self._size(image.size)
        return image if size == image.size else image.resize(size)

    def _length(self, images: list[Image.Image]) -> int:
        return len(_read(self.processor, images)["input_ids"][0])


def image_inputs(processor: Any) -> list[str]:
    """Names of what a processor makes of a conversation with an image, beside its tokens."""
    side = 64
    return [name for name in _read(processor, [Image.new("RGB", (side, side))]) if name not in _OF_TOKENS]


def _read(processor: Any, images: list[Image.Image]) -> Any:
    """What a processor makes of a short conversation."""
    message = _SHORT[0] | {"content": [{"type": "image"}] * len(images) + _SHORT[0]["content"]}
    text = processor.apply_chat_template([message], tokenize=False)
    return processor(text=[text], images=[images] if images else None)
