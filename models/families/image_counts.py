"""Images as they are, for processors that resize them by rules of their own; their tokens are counted by rendering."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from data.io.images import ImageSource, image_size
from data.io.pixel_bounds import ImageReader

_SHORT = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


@dataclass(frozen=True)
class ReadAsTheyAre(ImageReader):
    """The tokens of an image are those that a blank one of its size adds to a conversation, counted once a size.

    Attributes:
        processor: of the model.
    """

    processor: Any = field(compare=False)
    _counted: dict[tuple[int, int], int] = field(default_factory=dict, compare=False, repr=False)

    def tokens(self, source: ImageSource) -> int:
        """Tokens of an image with those around it.

        Raises:
            ImageError: see `data.io.images.image_size`.
        """
        size = image_size(source)
        if size not in self._counted:
            self._counted[size] = self._length([Image.new("RGB", size)]) - self._length([])
        return self._counted[size]

    def _length(self, images: list[Image.Image]) -> int:
        message = _SHORT[0] | {"content": [{"type": "image"}] * len(images) + _SHORT[0]["content"]}
        text = self.processor.apply_chat_template([message], tokenize=False)
        return len(self.processor(text=[text], images=[images] if images else None)["input_ids"][0])
